"""The dialects: one file each, all over the one Service. What each only says differently stays in its file."""
