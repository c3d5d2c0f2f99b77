"""Did it get worse? Limits, the evidence that runs hold of them, and the verdict: pure functions of what was saved."""
