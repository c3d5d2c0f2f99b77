"""The live gate: two servers measured in turn until it is decided which of the limits hold."""
