"""What can be seen of a server while it serves: counts, logs of single requests, traces, and what it uses."""
