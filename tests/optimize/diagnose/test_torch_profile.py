"""torch's profiler around an engine that runs torch."""

import numpy as np

from mlserve.optimize.diagnose.torch_profile import profile_engine


class Eager:
    """An engine that runs a torch module in this process."""

    inputs = outputs = ()

    def __init__(self, module):
        self._module = module.eval()

    def run(self, inputs):
        import torch

        with torch.inference_mode():
            return {"y": self._module(torch.from_numpy(inputs["x"])).numpy()}

    def close(self):
        pass


def test_time_and_work_are_told_by_operator_and_shapes(capfd):
    import torch

    engine = Eager(torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8)))
    profile = profile_engine(engine, {"x": np.ones((4, 256), np.float32)}, 4)
    assert profile.batch_rows == 4
    assert profile.flops == 2 * 4 * (256 * 512 + 512 * 8)
    products = [operation for operation in profile.operations if operation.operator == "addmm"]
    assert sorted(operation.flops for operation in products) == [2 * 4 * 512 * 8, 2 * 4 * 256 * 512]
    assert all(operation.self_s > 0 for operation in products)
    assert profile.notes
    assert capfd.readouterr() == ("", "")
