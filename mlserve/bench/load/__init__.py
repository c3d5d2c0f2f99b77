"""When requests are due: shapes of load, scenarios, recorded traces, and the one schedule that comes of them."""
