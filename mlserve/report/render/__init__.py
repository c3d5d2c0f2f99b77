"""A report as a page, as Markdown, as JSON: one file a format, each fed the same values."""
