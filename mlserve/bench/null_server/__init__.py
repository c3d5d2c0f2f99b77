"""A server that answers every inference at once with the same bytes: what a run is calibrated against."""
