"""An HTML page that needs nothing else: its style and script are in it, and its policy lets nothing else run or load.

**Law:** names, labels and reasons come from files and clients. The templates escape every one of them; what a script
needs, it reads from the page's text.
"""

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["sheet"]

_STYLE, _SCRIPT = "pages.css", "pages.js"


def sheet(template: str, **values: Any) -> Response:
    """The page that `template` makes of `values`."""
    html = _environment().get_template(template).render(**values)
    return Response(html, headers=_headers(), media_type="text/html")


@cache
def _environment() -> "Environment":
    # Half of what `import` costs here is paid when the first person comes, not by every worker's start.
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("mlserve.serve.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # a page's own files change with the program, not under it
    )
    sources = {name: environment.get_template(file).render() for name, file in (("style", _STYLE), ("script", _SCRIPT))}
    environment.globals |= {name: Markup(source) for name, source in sources.items()}  # noqa: S704  # our own files
    return environment


@cache
def _headers() -> dict[str, str]:
    sources = _environment().globals
    style, script = (_hash(str(sources[name])) for name in ("style", "script"))
    policy = {
        "default-src": "'none'",
        "style-src": style,
        "script-src": script,
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept",
    }


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
