"""What of an engine's message may be told: neither where its sources or files lie, nor what a tensor holds."""

import re

__all__ = ["discreet"]

# A path with the line and the C++ signature that may follow it, as onnxruntime's checks print them.
_PLACE = re.compile(r"(?:[A-Za-z]:)?[\w.~+-]*(?:[/\\][\w.~+-]+){2,}(?::\d+)?(?: [\w:~<>]+\([^()]*\)(?: const)?)?:?")
# `idx=10`; sizes in braces and brackets are the model's.
_VALUE = re.compile(r"(\b\w+ ?= ?)[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)\b", re.IGNORECASE)


def discreet(text: str) -> str:
    """`text` without paths, and with `...` for the values it tells.

    `/src/core/gather.cc:86 Gather::Compute(int) idx=10 must be within [-10,9]` -> `idx=... must be within [-10,9]`.
    """
    return " ".join(_VALUE.sub(r"\1...", _PLACE.sub(" ", text)).split())
