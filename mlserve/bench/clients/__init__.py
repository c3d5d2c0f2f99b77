"""What sends one request: one file a protocol, all behind `Client`. Only the generator's process imports them."""
