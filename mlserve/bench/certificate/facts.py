"""What a certificate rests on beside the rows."""

import msgspec

from mlserve.bench.measuring.warm_up import WarmUp
from mlserve.runs.machine import Machine
from mlserve.runs.resources import Resources
from mlserve.runs.run import Calibration

__all__ = ["Facts"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows cannot tell.

    `generator_cpus` are the shares of one core that each generator used. `ok` and `failed` count the whole run, warm-up
    included; `counted_ok` is what the server counted meanwhile, None where it does not tell.

    `device` is the one the server was held to, "" where it is not ours; `provider` and `precision` are what it says it
    really runs on and in. `variant` names what was made of the model, `compute_type` is the type it is meant to be
    computed in, and `sha256` the digest of its file; "" where nobody knows.

    `warm_up` is what was found in all the rows, the warm-up among them; None where nobody looked. `server_cpus` and
    `generator_cores` are the cores the two are held to, empty where nobody knows: what the processes themselves say
    (`resources`) goes before. `machine` is where the generators ran.
    """

    generator_cpus: tuple[float, ...]
    ok: int
    failed: int
    counted_ok: int | None = None
    device: str = ""
    provider: str = ""
    precision: str = ""
    variant: str = ""
    compute_type: str = ""
    sha256: str = ""
    server_cpus: tuple[int, ...] = ()
    generator_cores: tuple[int, ...] = ()
    calibration: Calibration | None = None
    warm_up: WarmUp | None = None
    resources: Resources = Resources()
    machine: Machine | None = None
