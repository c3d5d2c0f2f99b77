"""The wires: how bytes come in and go out, whichever dialect they speak."""
