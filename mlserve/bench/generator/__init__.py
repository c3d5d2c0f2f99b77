"""The generator: what runs in Locust's processes, which gevent has patched, and the process that starts them."""
