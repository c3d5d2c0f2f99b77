"""Every setting of a space foretold; what cannot even be timed in process is left out, with the reason."""

from collections.abc import Callable, Sequence

from mlserve.errors import EngineError, UsageError
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.space import Space
from mlserve.tuning.prediction.prediction import Prediction, Predicts
from mlserve.tuning.setting import Setting

__all__ = ["OpensPredictor", "foretell", "most_s"]

# On a quiet machine of two cores: to time an engine with some threads, a protocol, and to simulate a setting.
_ENGINE_S, _PROTOCOL_S, _SETTING_S = 6.0, 11.0, 0.3

OpensPredictor = Callable[[Sequence[Setting]], Predicts]
"""Measures what predictions of these settings need."""


def most_s(space: Space) -> float:
    """How long foretelling takes about, where nothing was timed before (seconds)."""
    settings = space.settings
    engines = {(one.model, one.options.engine, one.options.device, one.options.threads) for one in settings}
    protocols = {one.protocol for one in settings}
    return _ENGINE_S * len(engines) + _PROTOCOL_S * len(protocols) + _SETTING_S * len(settings)


def foretell(
    space: Space, aim: Aim, opens: OpensPredictor, on_step: Callable[[str], None]
) -> tuple[tuple[Prediction, ...], dict[str, str]]:
    """The predictions, in the order of the settings, and of each version and engine that failed why.

    Raises UsageError where nothing is left.
    """
    groups: dict[tuple[str, str, str], list[Setting]] = {}
    for one in space.settings:
        groups.setdefault((one.model, one.options.engine, one.options.device), []).append(one)
    found: dict[Setting, Prediction] = {}
    failed: dict[str, str] = {}
    for (model, engine, device), settings in groups.items():
        try:
            predicts = opens(settings)
        except EngineError as error:
            failed[" ".join(word for word in (model, engine, device) if word)] = str(error)
            continue
        for setting in settings:
            on_step(f"foretelling setting {len(found) + 1} of {len(space.settings)}")
            found[setting] = predicts([setting], aim.objective, aim.rate_per_s)[0]
    if not found:
        raise UsageError(f"no setting can be run here: {'; '.join(failed.values())}")
    return tuple(found[one] for one in space.settings if one in found), failed
