"""Runs of several settings at once, in turns: what tells the best apart is less than what a machine does meanwhile."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from mlserve.errors import MlserveError, UsageError
from mlserve.runs.load import Plan
from mlserve.tuning.calibrated import Runs, SideLoad
from mlserve.tuning.campaign import make_room
from mlserve.tuning.choosing.servers import Servers
from mlserve.tuning.measuring import OnProgress
from mlserve.tuning.opening import Opens
from mlserve.tuning.setting import Setting
from mlserve.tuning.slots import shared_plan, slot_of

__all__ = ["made_at_once"]


def made_at_once(
    settings: Mapping[Path, Setting], plan: Plan, opens: Opens, runs: Runs, on_progress: OnProgress
) -> bool:
    """Measures each setting by `plan`, all of them in turns, into its folder, and says whether all runs are there.

    They are not where `plan` leaves no turns to take, where several would hold a device, and where one breaks down:
    made by itself, each shows what it cannot do. Raises UsageError for what is wrong with all of them.
    """
    slot_s = slot_of(plan)
    if not slot_s or any(one.options.device != "cpu" for one in settings.values()):
        return False
    shared = shared_plan(plan, slot_s, len(settings))
    try:
        with ExitStack() as stack:
            servers = [stack.enter_context(Servers(opens)) for _ in settings]
            loads = []
            for server, (folder, setting) in zip(servers, settings.items(), strict=True):
                make_room(folder)
                plan = msgspec.structs.replace(shared, protocol=setting.protocol)
                loads.append(SideLoad(subject_of=server.open(setting), plan=plan, folder=folder, label=folder.name))
            for error in runs.at_once(loads, slot_s, on_progress):
                if error is not None:
                    raise error
            return not any(server.ended() for server in servers)
    except UsageError:
        raise
    except MlserveError:
        return False
