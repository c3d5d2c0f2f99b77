"""The formats a report is written in."""

from mlserve.errors import UsageError

__all__ = ["FORMATS", "USUAL_FORMATS", "parse_formats"]

FORMATS = ("html", "md", "json", "csv", "parquet", "png")
USUAL_FORMATS = ("html", "md", "json")


def parse_formats(text: str) -> tuple[str, ...]:
    """`"html, md"` -> `("html", "md")`, each once. Raises UsageError for a format that there is not, and for none."""
    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in wanted if part not in FORMATS]
    if unknown or not wanted:
        found = f"{unknown[0]!r} is no format" if unknown else "--formats names no format"
        raise UsageError(f"{found}; choose among {', '.join(FORMATS)}, with commas between them")
    return wanted
