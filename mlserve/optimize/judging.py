"""Variants held against the model as imported: the same rows, the same machine."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.independence import rows_independent
from mlserve.engines.opening import open_engine
from mlserve.errors import EngineError, Refused
from mlserve.model.artifact import Accuracy, Artifact, Metrics, record_files
from mlserve.model.rows import Rows
from mlserve.optimize.evaluation.accuracy import Answers, answer_rows, judge
from mlserve.optimize.evaluation.latency import measure_latency
from mlserve.optimize.evaluation.metrics import Metric, judged_output
from mlserve.runs.machine import read_machine

__all__ = ["Judge"]

OnStep = Callable[[str], None]


class Judge:
    """Measures artifacts on `rows` against `origin`; `split` says in words which rows of the user's these are."""

    def __init__(
        self,
        origin: Artifact,
        rows: Rows,
        settings: EngineSettings,
        on_step: OnStep,
        *,
        metric: Metric | None = None,
        split: str = "",
    ) -> None:
        self.rows, self._origin, self._settings, self._on_step = rows, origin, settings, on_step
        self._metric, self._split = metric, split
        with contextlib.closing(open_engine(origin, settings)) as engine:
            self.output = judged_output(engine.outputs, metric)
            self._expected = self._answers(origin, engine)

    def accuracy(self, artifact: Artifact) -> Accuracy:
        """How the artifact's answers compare with the origin's. Raises Refused where they are not finite."""
        if artifact is self._origin:
            return self._judged(self._expected)
        with self._opened([artifact]) as (engine,):
            return self._judged(self._answers(artifact, engine))

    def measured(self, judged: Sequence[tuple[Artifact, Accuracy]]) -> list[Artifact]:
        """The artifacts, the origin first, with accuracy, times in turn, and whether rows may run together."""
        artifacts = [artifact for artifact, _ in judged]
        with self._opened(artifacts) as engines:
            together = [
                rows_independent(engine, artifact.manifest.inputs)
                for artifact, engine in zip(artifacts, engines, strict=True)
            ]
            self._on_step("timing every variant in turn")
            latencies = measure_latency(engines, self.rows)
        where = self._settings.device if self._settings.device != "cpu" else read_machine().cpu
        machine = f"{where}, {self._settings.threads} threads"
        return [
            Artifact(
                artifact.directory,
                msgspec.structs.replace(
                    artifact.manifest,
                    files=record_files(artifact.directory),
                    rows_independent=independent,
                    metrics=Metrics(accuracy=accuracy, latency=latency, machine=machine),
                ),
            )
            for (artifact, accuracy), latency, independent in zip(judged, latencies, together, strict=True)
        ]

    def _answers(self, artifact: Artifact, engine: Engine) -> Answers:
        self._on_step(f"{artifact.manifest.variant}: accuracy on {len(self.rows)} rows")
        return answer_rows(engine, self.rows, output=self.output)

    def _judged(self, answers: Answers) -> Accuracy:
        manifest = self._origin.manifest
        return judge(
            answers, self._expected, self.rows, task=manifest.task, reference=manifest.variant, metric=self._metric,
            split=self._split, names=manifest.labels,
        )  # fmt: skip

    @contextlib.contextmanager
    def _opened(self, artifacts: Sequence[Artifact]) -> Iterator[list[Engine]]:
        with contextlib.ExitStack() as stack:
            engines: list[Engine] = []
            for artifact in artifacts:
                engine = self._open(artifact)
                stack.callback(engine.close)
                _same_interface(artifact, engine)
                engines.append(engine)
            yield engines

    def _open(self, artifact: Artifact) -> Engine:
        try:
            return open_engine(artifact, self._settings)
        except EngineError as error:
            reason = str(error).removeprefix(f"{artifact.model_path} ")
            raise Refused(f"{artifact.manifest.variant} {reason}") from error


def _same_interface(artifact: Artifact, engine: Engine) -> None:
    """The law every pass is held to: names and types of inputs and outputs stay."""
    for kind, specs, found in (
        ("input", artifact.manifest.inputs, engine.inputs),
        ("output", artifact.manifest.outputs, engine.outputs),
    ):
        said, has = [(spec.name, spec.dtype) for spec in specs], [(spec.name, spec.dtype) for spec in found]
        if said != has:
            raise Refused(f"{artifact.manifest.variant} has the {kind}s {has}, expected {said}")
