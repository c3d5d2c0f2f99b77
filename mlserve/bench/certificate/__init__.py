"""Whether a run's figures may be believed: conditions that hold or do not, each with what was found and its limit."""
