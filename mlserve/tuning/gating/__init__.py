"""`mlserve gate` on two servers that run: base and candidate in turn, until the verdict stands or the budget ends."""
