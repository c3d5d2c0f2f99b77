"""Which settings a search may choose from: versions that keep their accuracy, and the ways to serve them that make
sense on this machine.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product

import msgspec

from mlserve.errors import UsageError
from mlserve.model.artifact import Artifact
from mlserve.model.store import Store
from mlserve.optimize.evaluation.drop import holds
from mlserve.runs.load import Protocol
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.contest import cores_taken, cost_per_h
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

__all__ = ["MOST_SETTINGS", "Machinery", "Space", "layouts", "settings_of", "this_machine", "versions_for"]

MOST_SETTINGS = 240
"""More are thinned out: predicting is cheap, not free."""

_ROWS = (1, 4, 16, 32, 64)
_DELAYS_MS = (0.0, 1.0, 2.0, 5.0)
_FEWER_ROWS, _FEWER_DELAYS_MS = (1, 8, 32), (0.0, 2.0)
# Steps that leave the numbers as they were: what they make may run on another engine without being judged again.
_HARMLESS = frozenset(("import", "fuse"))


class Machinery(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to serve with: `cores` for the server, devices beside the CPU, engines beside onnxruntime.

    `machine_cores` are those of the whole machine, which is what is paid for; 0 for as many as the server's.
    """

    cores: int
    machine_cores: int = 0
    devices: tuple[str, ...] = ("cpu",)
    engines: tuple[str, ...] = ()
    spare_cores: int = 1


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, and of each version that has none, and of settings that were not taken, why."""

    settings: tuple[Setting, ...]
    left_out: dict[str, str] = {}


def this_machine(generators: int = 1) -> Machinery:
    """What a server that leaves a core to each generator has here."""
    from mlserve.bench.cores import own_cores, split_cores
    from mlserve.runs.machine import read_machine

    machine = read_machine()
    devices = ["cpu"]
    if machine.gpus:
        from mlserve.engines.onnx_engine import loadable_providers

        devices += ["cuda"] if loadable_providers().get("CUDAExecutionProvider") == "" else []
    kept, _ = split_cores(own_cores(), generators)
    return Machinery(
        cores=len(kept) or machine.cores,
        machine_cores=machine.cores,
        devices=tuple(devices),
        engines=("openvino",) if find_spec("openvino") else (),
        spare_cores=generators,
    )


def versions_for(
    store: Store, refs: Sequence[str], aim: Aim, variants: Sequence[str]
) -> tuple[list[Artifact], dict[str, str]]:
    """The versions that `refs` mean, all of one model, and by its name why each other is left out: all of a name, or
    just the one that NAME@VERSION says.

    Of each variant the newest is taken. Raises StoreError for what there is not, UsageError where none is left.
    """
    name = refs[0].partition("@")[0]
    every = [artifact for ref in refs for artifact in _meant(store, ref)]
    left_out: dict[str, str] = {}
    newest = {artifact.manifest.variant: artifact for artifact in every}
    kept = []
    for artifact in every:
        variant = artifact.manifest.variant
        reason = _objection(artifact, newest[variant], aim, variants)
        if reason:
            left_out[f"{artifact.ref} ({variant})"] = reason
        else:
            kept.append(artifact)
    unknown = [variant for variant in variants if variant not in newest]
    if unknown:
        raise UsageError(f"--variants {','.join(unknown)}: {name} has {', '.join(newest)}; name some of these")
    if not kept:
        reasons = "; ".join(f"{which}: {reason}" for which, reason in left_out.items())
        raise UsageError(f"no version of {name} may be served: {reasons}")
    return kept, left_out


def settings_of(versions: Sequence[Artifact], protocols: Sequence[Protocol], aim: Aim, machinery: Machinery) -> Space:
    """Every version in every way that makes sense and costs no more than it may, at most `MOST_SETTINGS`.

    Raises UsageError where every one costs more.
    """
    left_out: dict[str, str] = {}
    for rows, delays_ms, few in (
        (_ROWS, _DELAYS_MS, False),
        (_FEWER_ROWS, _FEWER_DELAYS_MS, False),
        ((1, 32), (0.0,), True),
    ):
        every = tuple(
            Setting(model=artifact.ref, variant=artifact.manifest.variant, options=options, protocol=protocol)
            for artifact in versions
            for options in _options(artifact, rows, _shorter(delays_ms, aim), machinery, few=few)
            for protocol in protocols
        )
        settings = _affordable(every, aim, machinery)
        if len(settings) <= MOST_SETTINGS:
            break
    if len(settings) < len(every):
        dear = len(every) - len(settings)
        left_out[f"{dear} setting{'' if dear == 1 else 's'}"] = f"cost more than {aim.max_cost_per_h:g}/h (--max-cost)"
    if len(settings) > MOST_SETTINGS:  # versions without number: some ways of each
        kept = [settings[number * len(settings) // MOST_SETTINGS] for number in range(MOST_SETTINGS)]
        left_out["some settings"] = f"{len(settings)} are too many to foretell; name fewer versions with --variants"
        settings = tuple(kept)
    return Space(settings=settings, left_out=left_out)


def layouts(cores: int, *, few: bool = False) -> list[tuple[int, int]]:
    """(workers, threads) that use up to `cores`: powers of two, and all of the cores; `few` leaves one of each and
    all of the other.
    """
    counts = sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})
    found = [(workers, threads) for workers in counts for threads in counts if workers * threads <= cores]
    whole = [(workers, cores // workers) for workers in counts]
    return list(dict.fromkeys([(1, cores), (cores, 1)])) if few else sorted({*found, *whole})


def _meant(store: Store, ref: str) -> list[Artifact]:
    every = [] if "@" in ref else [store.get(ref, version) for version in store.versions(ref)]
    return every or [store.resolve(ref)]  # which says so where there is none


def _objection(artifact: Artifact, newest: Artifact, aim: Aim, variants: Sequence[str]) -> str:
    """Why a version is no candidate; "" where it is one."""
    manifest = artifact.manifest
    if variants and manifest.variant not in variants:
        return "--variants leaves it out"
    if artifact is not newest:
        return f"{newest.ref} is a newer one"
    if aim.max_memory_bytes is not None and artifact.size_bytes > aim.max_memory_bytes:
        return "its files alone are larger than --max-memory"
    accuracy = manifest.metrics.accuracy
    if accuracy is None:
        changed = [step.step for step in manifest.lineage if step.step not in _HARMLESS]
        return f"what it lost by {', '.join(changed)} was never measured" if changed else ""
    verdict = holds(accuracy, aim.max_accuracy_loss)
    is_reference = accuracy.reference == manifest.variant
    return "" if is_reference or verdict.kept else verdict.reason


def _options(
    artifact: Artifact, rows: Sequence[int], delays_ms: Sequence[float], machinery: Machinery, *, few: bool
) -> list[ServerOptions]:
    manifest = artifact.manifest
    rows = rows if manifest.rows_independent else (1,)
    pairs = [(most, delay) for most in rows for delay in delays_ms if most > 1 or not delay]
    found = []
    for engine, device in product(_engines(artifact, machinery), machinery.devices):
        if device != "cpu" and engine == "openvino":
            continue
        ways = [(1, 1), (2, 1)] if device != "cpu" else layouts(machinery.cores, few=few)
        found += [
            ServerOptions(
                workers=workers,
                threads=threads,
                max_batch_rows=most,
                max_delay_ms=delay,
                device=device,
                engine=engine,
                spare_cores=machinery.spare_cores,
            )
            for (workers, threads), (most, delay) in product(ways, pairs)
        ]
    return found


def _engines(artifact: Artifact, machinery: Machinery) -> list[str]:
    """What it was made for; others only where that changes nothing that was judged."""
    manifest = artifact.manifest
    if manifest.format != "onnx" or any(step.step not in _HARMLESS for step in manifest.lineage):
        return [manifest.engine]
    return list(dict.fromkeys([manifest.engine, *machinery.engines]))


def _affordable(settings: Sequence[Setting], aim: Aim, machinery: Machinery) -> tuple[Setting, ...]:
    """Those that cost at most `aim.max_cost_per_h`. Raises UsageError where none does."""
    if aim.max_cost_per_h is None or aim.price_per_h is None:
        return tuple(settings)
    cores = machinery.machine_cores or machinery.cores
    costs = [cost_per_h(aim.price_per_h, cores_taken(one.options, cores) / cores) for one in settings]
    most = aim.max_cost_per_h * (1 + 1e-9)  # a share of a price, such as a third, is rounded
    if min(costs) > most:
        raise UsageError(
            f"--max-cost {aim.max_cost_per_h:g}/h: every setting costs more, the cheapest {min(costs):.3g}/h of the "
            f"{aim.price_per_h:g}/h of this machine; raise it, or tune on a machine that costs less a core"
        )
    return tuple(one for one, cost in zip(settings, costs, strict=True) if cost <= most)


def _shorter(delays_ms: Sequence[float], aim: Aim) -> list[float]:
    """Those that leave at least half of the limit."""
    return [delay for delay in delays_ms if delay <= 500 * aim.objective.limit_s]
