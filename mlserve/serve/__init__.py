"""Serving: models behind a `Service`, batched, in the dialects of `protocols`, over the wires of `transports`."""
