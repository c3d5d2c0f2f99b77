"""Whether workers live, what they die of, and what keeps them alive."""
