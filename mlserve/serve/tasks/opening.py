"""Which task a version carries, by the files and facts of its artifact."""

from mlserve.model.artifact import Artifact
from mlserve.serve.batching.batcher import Batcher
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.tasks.task import Task
from mlserve.wire.signature import Signature

__all__ = ["open_task"]


def open_task(artifact: Artifact, signature: Signature, batcher: Batcher, turn: LoopTurn) -> Task | None:  # noqa: ARG001  # filled in by the room's own work
    """What the version does for a person; None when it takes tensors only. `batcher` runs the model itself."""
    return None
