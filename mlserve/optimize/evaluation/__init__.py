"""How a variant is judged: what it keeps of the answers, and how long it takes."""
