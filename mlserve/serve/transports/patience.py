"""How long a client waits for its answer, as its request says: beyond that nobody is there to read it."""

from collections.abc import Mapping

__all__ = ["EXPECTED_WITHIN", "patience_s"]

EXPECTED_WITHIN = b"x-envoy-expected-rq-timeout-ms"
"""Milliseconds: the header by which Envoy, and with it Istio and KServe, tells a server when it gives a request up."""

_MOST_DIGITS = 12


def patience_s(own_s: float, headers: Mapping[bytes, bytes]) -> float:
    """The shorter of `own_s`, which a request's own parameters say, and what a header says; 0.0 is for ever.

    A header that is no whole number above 0 says nothing.
    """
    text = headers.get(EXPECTED_WITHIN)
    if text is None or not text.isdigit() or len(text) > _MOST_DIGITS:
        return own_s
    told_s = int(text) / 1000
    return min(own_s, told_s) if own_s and told_s else own_s or told_s
