"""A gate's verdict as a badge: an SVG of our own, and the JSON of which shields.io makes one."""

from html import escape

import msgspec

from mlserve.report.render.gate_figures import GateFigures

__all__ = ["render_badge", "render_endpoint"]

_LABEL = "latency gate"
# White text on each has a contrast of at least 4.5 to 1 (WCAG 2, AA).
_COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#6e5600", "error": "#57606a"}
_ENDPOINT_COLOURS = {"pass": "brightgreen", "fail": "red", "inconclusive": "yellow", "error": "lightgrey"}
# Verdana at 11 px is about so wide a letter; the text is stretched to what is reserved for it.
_LETTER_PX, _PADDING_PX = 6.6, 6


def render_badge(figures: GateFigures) -> str:
    """An SVG 20 px high that needs no font, file or network beside it."""
    label, word = _LABEL, figures.verdict
    left, right = _width_px(label), _width_px(word)
    size = f'width="{left + right}" height="20"'
    title = escape(f"{label}: {word}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f'<rect width="{left + right}" height="20" rx="3" fill="#3d444d"/>',
            f'<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z" fill="{_COLOURS[word]}"/>',
            '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">',
            _text(label, _PADDING_PX),
            _text(word, left + _PADDING_PX),
            "</g>",
            "</svg>",
            "",
        ]
    )


def render_endpoint(figures: GateFigures) -> str:
    """What https://shields.io/badges/endpoint-badge asks for."""
    document = {
        "schemaVersion": 1,
        "label": _LABEL,
        "message": figures.verdict,
        "color": _ENDPOINT_COLOURS[figures.verdict],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _width_px(text: str) -> int:
    return round(_LETTER_PX * len(text)) + 2 * _PADDING_PX


def _text(text: str, left_px: int) -> str:
    long_px = round(_LETTER_PX * len(text))
    return f'<text x="{left_px}" y="14" textLength="{long_px}">{escape(text)}</text>'
