"""What the server itself counted, where it tells: mlserve's own page of metrics."""

import http.client

from prometheus_client.parser import text_string_to_metric_families

from mlserve.bench.dialects.asking import read_page
from mlserve.bench.target import Target

__all__ = ["count_ok", "read_count"]

_METRIC = "mlserve_requests_total"
# The label `protocol` of mlserve serve.
_LABEL_OF = {"rest": "v2-rest", "grpc": "v2-grpc"}


def read_count(url: str, target: Target) -> int | None:
    """How many requests for the target the server behind `url` has answered well; None where it does not tell."""
    try:
        return count_ok(read_page(f"{url}/metrics").decode(), target)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def count_ok(page: str, target: Target) -> int | None:
    """The same, from a page of metrics. None when the page is of another kind of server.

    Raises ValueError when it is no page of metrics.
    """
    if _METRIC.removesuffix("_total") not in page:
        return None
    wanted = {"model": target.model, "protocol": _LABEL_OF[target.protocol], "outcome": "ok"}
    if target.version:
        wanted["version"] = target.version
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return sum(
        round(sample.value) for sample in samples if sample.name == _METRIC and wanted.items() <= sample.labels.items()
    )
