"""What of a run is measured: where its warm-up ends, whether it was steady after that, and when enough was seen."""
