"""One load test on disk: raw rows, the plan, what was measured, where, and whether the figures may be believed."""
