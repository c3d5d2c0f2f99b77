"""What is load-tested, and what it is fed."""

import msgspec

from mlserve.bench.local_server import listening_pids
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.probe import describe_model, find_model
from mlserve.bench.target import Target
from mlserve.model.tensors import TensorSpec
from mlserve.runs.lock import Lock
from mlserve.runs.run import ServedModel, ServerSettings

__all__ = ["Interface", "Subject", "url_subject"]

Interface = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""A model's inputs and outputs."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One model behind one protocol of one server.

    `metrics_url` is where the server shows its counters, "" where nobody knows. `server` is how it was set, where it
    is ours. `cpus` are the cores for the generators, empty for any. `pids` are the server's processes, where they are
    on this machine. `compute_type` is the type that the model is meant to be computed in, "" where nobody says.
    `start_up_s` is how long its server took until it served, None where it is not ours. `lock` is what a run of it is
    made of; digests that it names are held to (see `sealed`).
    """

    target: Target
    model: ServedModel
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    wish: PayloadWish = PayloadWish()
    metrics_url: str = ""
    server: ServerSettings | None = None
    cpus: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    compute_type: str = ""
    start_up_s: float | None = None
    lock: Lock | None = None


def url_subject(
    target: Target, wish: PayloadWish | None = None, interface: Interface | None = None, metrics_url: str = ""
) -> Subject:
    """The model behind a URL: as its server describes it, or with the `interface` that is known from elsewhere.

    `metrics_url` is where it shows its counters, where that is not where it is asked.

    Raises BenchError when the server cannot be reached, or when nobody says what it takes.
    """
    target = find_model(target)
    if interface is None:
        found = describe_model(target)
        inputs, outputs, provider, precision = found.inputs, found.outputs, found.provider, found.precision
    else:
        (inputs, outputs), provider, precision = interface, "", ""
    return Subject(
        target=target,
        model=ServedModel(
            url=target.url, name=target.title, version=target.version, provider=provider, precision=precision
        ),
        inputs=inputs,
        outputs=outputs,
        wish=msgspec.structs.replace(wish or PayloadWish(), outputs=outputs),
        metrics_url=metrics_url or (target.url if target.url.startswith("http") else ""),
        pids=listening_pids(target),
    )
