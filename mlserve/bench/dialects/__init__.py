"""How requests are written and answers read: one file a protocol, all behind `Dialect`."""
