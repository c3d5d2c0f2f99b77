"""What the server itself counted, where it tells: pages of Prometheus metrics, mlserve's own and others'."""

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from mlserve.bench.dialects.asking import read_page
from mlserve.bench.target import Target
from mlserve.runs.load import Protocol

__all__ = ["count_ok", "read_count"]

_PAGES = ("/metrics", "/monitoring/prometheus/metrics")
"""Where servers show them; the second is TensorFlow Serving's."""

_OURS = "mlserve_requests"
# The label `protocol` of mlserve serve; a server of no protocol may be asked by any of them.
_LABELS_OF: dict[Protocol, tuple[str, ...]] = {
    "rest": ("v2-rest",),
    "rest-binary": ("v2-rest",),
    "grpc": ("v2-grpc",),
    "tfserving": ("tensorflow-rest",),
    "tfserving-grpc": ("tensorflow-grpc",),
    "torchserve": ("torchserve",),
    "sagemaker": ("invocations", "sagemaker"),
    "mlflow": ("invocations",),
}


class _Counter(msgspec.Struct, frozen=True):
    """One server's count of inference requests: the labels that hold model and version, and those of good answers.

    `name` is without `_total`, which some write and the parser adds for the others. A server that counts the failed
    requests with the good ones has nothing in `ok`.
    """

    name: str
    model: str
    version: str = ""
    ok: tuple[tuple[str, str], ...] = ()


# By the sources of each: Triton's docs/user_guide/metrics.md, MLServer's handlers/dataplane.py, TorchServe's
# docs/metrics.md, TensorFlow Serving's servables/tensorflow/util.cc.
_COUNTERS = (
    _Counter(_OURS, "model", "version", (("outcome", "ok"),)),
    _Counter("nv_inference_request_success", "model", "version"),
    _Counter("model_infer_request_success", "model", "version"),
    _Counter("ts_inference_requests", "model_name", "model_version"),
    _Counter(":tensorflow:serving:request_count", "model_name", "", (("status", "OK"),)),
)


def read_count(url: str, target: Target) -> int | None:
    """How many requests for the target the server behind `url` has answered well; None where it does not tell.

    `url` is the page itself, or a server whose page is where such pages usually are. TorchServe counts the failed ones
    too.
    """
    for page in (url,) if urlsplit(url).path.strip("/") else (url.rstrip("/") + path for path in _PAGES):
        try:
            return count_ok(read_page(page, target.headers, target.trust).decode(), target)
        except (OSError, http.client.HTTPException, ValueError):
            continue
    return None


def count_ok(page: str, target: Target) -> int | None:
    """The same, from a page of metrics. None when the page is of a server whose counters are not known here.

    Raises ValueError when it is no page of metrics.
    """
    counter = next((each for each in _COUNTERS if each.name in page), None)
    if counter is None:
        return None
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(
        round(sample.value)
        for sample in samples
        if sample.name.removesuffix("_total") == counter.name and _counts(counter, sample.labels, target)
    )


def _counts(counter: _Counter, labels: Mapping[str, str], target: Target) -> bool:
    wanted = dict(counter.ok)
    if target.model:
        wanted[counter.model] = target.model
    if counter.version and target.version.isdecimal():  # an alias is counted as the version it means
        wanted[counter.version] = target.version
    if not wanted.items() <= labels.items():
        return False
    return counter.name != _OURS or target.protocol == "json" or labels["protocol"] in _LABELS_OF[target.protocol]
