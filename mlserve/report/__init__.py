"""From saved runs to a decision: figures with intervals, a recommendation, a gate, and the pages that show them."""
