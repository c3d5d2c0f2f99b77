"""A model that is unloaded is gone at once: what a worker began with is frozen, and no collector comes to it."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.loading import load_model, unload_model
from mlserve.serve.settings import ModelSource, ServeSettings


@pytest.fixture
def frozen():
    """`frozen()`: from here to the end of the test nothing is collected."""
    gc.collect()
    gc.disable()
    yield gc.freeze
    gc.unfreeze()
    gc.enable()


def outlives(source, values, frozen, spoil=lambda _: None):
    """Which parts of a model are still there once it has answered, was unloaded and forgotten."""

    async def serve():
        served = load_model(source, ServeSettings(), LoopTurn(asyncio.get_running_loop()))
        spoil(served)
        frozen()
        if served.task is not None:
            await served.task.answer(values)
        await asyncio.to_thread(unload_model, served)
        parts = {"engine": served.engine, "batcher": served.batcher, "task": served.task, "meter": served.meter}
        return {name: weakref.ref(part) for name, part in parts.items() if part is not None}

    return {name for name, part in asyncio.run(serve()).items() if part() is not None}


@pytest.fixture
def source_of(spam, digits, publish, bag):
    """`source_of(kind)`: a model of tensors, texts or images, and what it may be asked."""
    tensors = publish("tensors", lambda path: bag(path, np.ones((14, 2))), tokenizer=False)
    made = {"tensors": tensors, "text": spam, "image": digits}

    def source(kind):
        artifact = made[kind]
        return ModelSource(artifact.manifest.name, "1", str(artifact.directory))

    return source


@pytest.mark.parametrize("kind", ["tensors", "text", "image"])
def test_nothing_of_a_model_waits_for_the_collector(source_of, frozen, png, kind):
    values = {"tensors": [], "text": ["free money"], "image": [png(np.zeros((8, 8)))]}[kind]
    assert outlives(source_of(kind), values, frozen) == set()


def test_a_part_that_refers_to_itself_would_stay_with_all_that_it_holds(source_of, frozen):
    def spoil(served):
        served.batcher.itself = served.batcher

    assert outlives(source_of("tensors"), [], frozen, spoil) == {"batcher", "engine", "meter"}
