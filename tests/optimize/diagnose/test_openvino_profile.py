"""OpenVINO's own counters, on a real model."""

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.optimize.diagnose.openvino_profile import profile_openvino

pytest.importorskip("openvino")


def test_the_same_rows_come_from_openvino(nets, tmp_path):
    path = nets.cnn(tmp_path / "cnn.onnx")
    batches = {rows: {"x": np.ones((rows, 3, 32, 32), np.float32)} for rows in (1, 4)}
    profiles = profile_openvino(path, "", EngineSettings(threads=1), batches)
    for profile in profiles:
        # Exactly the work of the graph, as OpenVINO keeps these operators.
        assert profile.flops == 2 * profile.batch_rows * (32 * 32 * (16 * 3 * 9 + 32 * 16 * 9) + 32 * 10)
        assert all(operation.self_s >= 0 for operation in profile.operations)
        assert profile.operations_s > 0
        assert profile.runs >= 3
        convolutions = [operation for operation in profile.operations if operation.operator == "Convolution"]
        assert [operation.precision for operation in convolutions] == ["fp32", "fp32"]
        assert sum(operation.weight_bytes for operation in convolutions) == 4 * (16 * 27 + 32 * 144)


def test_a_file_that_is_no_model_is_an_engine_error(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("nothing")
    with pytest.raises(EngineError, match=r"model\.xml cannot be profiled"):
        profile_openvino(path, "", EngineSettings(), {1: {}})
