"""Students: smaller networks that take and give what their teacher does."""

import copy
import itertools
import math

import msgspec
import torch

from mlserve.errors import Refused, UsageError
from mlserve.optimize.training.layers import drop_layers, layer_count, layer_stacks
from mlserve.optimize.training.losses import answer_kind, imitation_loss
from mlserve.optimize.training.structure import shrink
from mlserve.optimize.training.trainee import Trainee, thaw
from mlserve.optimize.users_code import call_named

__all__ = ["Student", "make_student"]

_CHOSEN_BY_ROWS = 32

LayerPair = tuple[torch.nn.Module, torch.nn.Module]
"""A layer of the student, and the layer of the teacher whose states it should give."""


class Student(msgspec.Struct, frozen=True):
    """A student to be trained; `made` says in words how it came about."""

    module: torch.nn.Module
    made: str
    pairs: tuple[LayerPair, ...] = ()


def make_student(trainee: Trainee, factory: str, *, layers: int, width: float, seed: int) -> Student:
    """What `factory` makes, its random weights drawn with `seed`; else a copy of the teacher with less in it.

    Raises UsageError for a factory that cannot be called, and Refused for a student whose answers have other names or
    shapes than the teacher's, or that cannot be made smaller so.
    """
    teacher = trainee.module
    student = _from_factory(factory, seed) if factory else _thinner_copy(trainee, layers, width)
    expected = trainee.shapes()
    trainee.module = student.module
    try:
        found = trainee.shapes()
    except Refused as error:
        reason = str(error).removeprefix("the changed model does not run: ")
        raise Refused(f"the student does not run on the teacher's inputs ({_inputs(trainee)}): {reason}") from error
    finally:
        trainee.module = teacher
    if found != expected:
        raise Refused(
            f"the student answers {_shown(found)}, its teacher {_shown(expected)}; give both the same outputs"
        )
    thaw(student.module)
    return student


def _from_factory(factory: str, seed: int) -> Student:

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = call_named(factory, "student")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"student {factory} gives a {type(module).__name__}; return a torch.nn.Module")
    return Student(module, f"student: {factory}")


def _thinner_copy(trainee: Trainee, layers: int, width: float) -> Student:
    if trainee.frozen_as:
        raise Refused(
            f"a thinner copy cannot be made of {trainee.frozen_as}, which is a fixed graph; give a student of its own "
            'with student = "package.module:factory", or the model as a state dict with --model-class'
        )
    teacher = trainee.module
    module, made, keep = _copied(teacher), [], []
    if layers:
        keep = _choose_layers(trainee, layers)
        drop_layers(module, keep)
        made.append(f"layers {', '.join(str(number + 1) for number in keep)} of the teacher's {layer_count(teacher)}")
    if width < 1:
        trainee.module = module
        try:
            made.extend(shrink(trainee, channels=1 - width))
        finally:
            trainee.module = teacher
    return Student(module, f"student: {'; '.join(made)}", _pairs(teacher, module, keep))


def _choose_layers(trainee: Trainee, keep: int) -> list[int]:
    """Which `keep` layers to leave: one goes after another, each time the one whose loss changes the answers least.

    On MiniLM-L6 an untrained copy with four layers so keeps a cosine of 0.86 to its teacher, with evenly spaced ones
    0.64.
    """
    count = layer_count(trainee.module)
    if not count:
        raise Refused("no layers can be dropped: the model has no stack of two or more layers that are alike")
    if keep >= count:
        raise Refused(f"layers = {keep} leaves nothing out: the model has {count}; keep fewer, or use width or student")
    inputs = trainee.example(min(_CHOSEN_BY_ROWS, len(trainee.rows or ())) or 1)
    kept = list(range(count))
    trainee.module.eval()
    with torch.no_grad():
        wanted = trainee.answer(trainee.module, inputs)
        kinds = {name: answer_kind(name, answer, task=trainee.task) for name, answer in wanted.items()}

        def distance(left: list[int]) -> float:
            candidate = _same_weights(trainee.module)
            drop_layers(candidate, left)
            found = trainee.answer(candidate, inputs)
            value = float(imitation_loss(found, wanted, kinds=kinds, mask=inputs.get("attention_mask")))
            return value if math.isfinite(value) else math.inf

        while len(kept) > keep:
            kept = min(([other for other in kept if other != number] for number in kept), key=distance)
    return kept


def _pairs(teacher: torch.nn.Module, student: torch.nn.Module, keep: list[int]) -> tuple[LayerPair, ...]:
    """Each layer of the student beside the teacher's that came before the student's next one.

    So the next layer, which was trained to read that state, finds it again, although layers between them are gone.
    """
    pairs: list[LayerPair] = []
    for name, stack in layer_stacks(teacher).items() if keep else ():
        teachers = list(stack.children())
        targets = [teachers[number - 1] for number in (*keep[1:], len(teachers))]
        pairs.extend(zip(student.get_submodule(name).children(), targets, strict=True))
    return tuple(pairs)


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # a module may hold what cannot be copied
        raise Refused(
            f'the model cannot be copied ({type(error).__name__}: {error}); give student = "package.module:factory"'
        ) from error


def _same_weights(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares its tensors with `module`: layers can be taken out of it at no cost in memory."""
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def _shown(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _inputs(trainee: Trainee) -> str:
    return ", ".join(map(str, trainee.inputs))
