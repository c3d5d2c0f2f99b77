"""Facts made from numbers, and small real models: what findings are tested on, and what is measured."""

import shlex
from itertools import pairwise

import numpy as np
import pytest
from typer.main import get_command

from mlserve.cli.main import app
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.diagnose.facts import (
    Comparison,
    Conditions,
    Facts,
    Operation,
    Peaks,
    Profile,
    Structure,
    Subject,
    Timing,
)
from mlserve.runs.machine import Machine


class Made:
    """Builds facts: a calm two-core VNNI machine and a model of 1 ms, each test changing what it is about."""

    @staticmethod
    def operation(operator, self_us, *, name="", precision="fp32", provider="CPUExecutionProvider", **rest):
        return Operation(
            name=name or f"{operator}_{id(rest)}",
            operator=operator,
            provider=provider,
            self_s=self_us / 1e6,
            precision=precision,
            **rest,
        )

    @staticmethod
    def profile(operations, batch_rows=1):
        run_s = sum(operation.self_s for operation in operations)
        return Profile(batch_rows=batch_rows, runs=9, run_s=run_s, operations=tuple(operations))

    @staticmethod
    def timing(batch_rows=1, p50_us=1000.0, against_us=None):
        against_s = None if against_us is None else against_us / 1e6
        return Timing(batch_rows=batch_rows, runs=9, first_run_s=0.01, p50_s=p50_us / 1e6, against_p50_s=against_s)

    @staticmethod
    def machine(**changes):
        calm = {
            "cpu": "test",
            "cpu_flags": ("avx2", "avx512_vnni"),
            "cores": 2,
            "memory_bytes": 8 << 30,
            "system": "Linux 6 x86_64",
            "python": "3.11",
            "packages": {},
        }
        return Machine(**calm | changes)

    @staticmethod
    def conditions(**changes):
        calm = {"device_asked": "cpu", "device": "cpu", "threads": 2, "rows_source": "synthetic rows", "load": 0.1}
        return Conditions(**calm | changes)

    @staticmethod
    def subject(**changes):
        plain = {
            "ref": "net@2",
            "name": "net",
            "variant": "int8",
            "format": "onnx",
            "engine": "onnxruntime",
            "compute_type": "",
            "size_bytes": 1000,
            "path": "store/net/2/model.onnx",
            "source": "store/net/1/model.onnx",
            "store": "store",
            "data": "",
            "inputs": (TensorSpec("x", "float32", ("batch", 8)),),
            "outputs": (TensorSpec("y", "float32", ("batch", 2)),),
            "fixed_rows": None,
        }
        return Subject(**plain | changes)

    @staticmethod
    def structure(**changes):
        return Structure(**{"opset": 17, "nodes": 3, "weights_precision": "fp32", "optimized": True} | changes)

    def facts(self, operations=(), **changes):
        """One profile of `operations` at one row, unless `profiles` says otherwise."""
        plain = {
            "subject": self.subject(),
            "machine": self.machine(),
            "conditions": self.conditions(),
            "open_s": 0.01,
            "timings": (self.timing(),),
            "profiles": (self.profile(operations or [self.operation("Relu", 1000)]),),
            "peaks": Peaks(100e9, 400e9, 10e9),
            "structure": self.structure(),
        }
        return Facts(**plain | changes)

    @staticmethod
    def against():
        return Comparison("net@1", "fp32")


@pytest.fixture(scope="session")
def made():
    return Made()


@pytest.fixture(scope="session")
def understood():
    """Asserts that the command line understands every `mlserve ...` among commands; runs none of them."""
    root = get_command(app)
    context = root.make_context("mlserve", ["doctor"])

    def check(commands):
        assert commands
        for command in commands:
            program, *words = shlex.split(command)
            if program == "mlserve":
                verb = root.get_command(context, words[0])
                assert verb is not None, command
                verb.make_context(words[0], words[1:])  # raises for what it does not understand
            else:
                assert program in ("pip", "python"), command

    return check


class Nets:
    """Writes small ONNX models."""

    @staticmethod
    def save(path, nodes, inputs, outputs, weights, opset=17):
        from onnx import TensorProto, checker, helper, numpy_helper, save_model

        kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}
        graph = helper.make_graph(
            [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
            "net",
            [helper.make_tensor_value_info(name, kinds[kind], shape) for name, kind, shape in inputs],
            [helper.make_tensor_value_info(name, kinds[kind], shape) for name, kind, shape in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        checker.check_model(model)
        save_model(model, path)
        return path

    def mlp(self, path, sizes=(64, 128, 16), rows="batch"):
        rng = np.random.default_rng(0)
        nodes, weights, current = [], {}, "x"
        for number, (wide, narrow) in enumerate(pairwise(sizes)):
            weights[f"w{number}"] = rng.standard_normal((wide, narrow)).astype(np.float32) / np.float32(wide**0.5)
            last = number == len(sizes) - 2
            nodes.append(("MatMul", [current, f"w{number}"], ["y" if last else f"m{number}"]))
            if not last:
                nodes.append(("Relu", [f"m{number}"], [f"r{number}"]))
                current = f"r{number}"
        return self.save(path, nodes, [("x", "f", [rows, sizes[0]])], [("y", "f", [rows, sizes[-1]])], weights)

    def cnn(self, path, side=32):
        """Two convolutions of 3 x 3, 3 -> 16 -> 32 channels, pooled into 10 classes."""
        rng = np.random.default_rng(0)
        weights = {
            "k0": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
            "k1": rng.standard_normal((32, 16, 3, 3)).astype(np.float32) / 12,
            "w": rng.standard_normal((32, 10)).astype(np.float32),
        }
        nodes = [
            ("Conv", ["x", "k0"], ["c0"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c0"], ["r0"]),
            ("Conv", ["r0", "k1"], ["c1"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c1"], ["r1"]),
            ("GlobalAveragePool", ["r1"], ["p"]),
            ("Flatten", ["p"], ["f"]),
            ("MatMul", ["f", "w"], ["y"]),
        ]
        return self.save(path, nodes, [("x", "f", ["batch", 3, side, side])], [("y", "f", ["batch", 10])], weights)

    @staticmethod
    def dynamic_int8(source, target):
        import logging

        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.disable(logging.WARNING)
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
        logging.disable(logging.NOTSET)
        return target

    @staticmethod
    def static_int8(source, target, batches):
        import logging

        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self):
                self._left = iter(batches)

            def get_next(self):
                return next(self._left, None)

        logging.disable(logging.WARNING)
        quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        logging.disable(logging.NOTSET)
        return target


@pytest.fixture(scope="session")
def nets():
    return Nets()
