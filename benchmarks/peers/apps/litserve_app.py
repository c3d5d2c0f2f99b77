"""LitServe and onnxruntime, one row a request.

    python litserve_app.py --model MODEL.onnx --port PORT [--batch-rows N --batch-delay-s S]

`POST /predict` takes `{"inputs": {name: rows}}` and answers `{"outputs": {name: rows}}`. With more than one row a
batch, LitServe gathers requests for up to the delay.
"""

import argparse
from typing import Any

import litserve
import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
Arrays = dict[str, Any]


class Model(litserve.LitAPI):
    """Requests of one row each, joined to a batch where LitServe gathers several."""

    def __init__(self, path: str, rows: int, delay_s: float) -> None:
        super().__init__(max_batch_size=rows, batch_timeout=delay_s)
        self.path = path

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.path, options, ["CPUExecutionProvider"])
        self.types = {each.name: TYPES[each.type] for each in self.session.get_inputs()}
        self.names = [each.name for each in self.session.get_outputs()]

    def decode_request(self, request: dict[str, Any]) -> Arrays:
        return {name: np.asarray(request["inputs"][name], dtype) for name, dtype in self.types.items()}

    def batch(self, inputs: list[Arrays]) -> Arrays:
        return {name: np.concatenate([each[name] for each in inputs]) for name in self.types}

    def predict(self, inputs: Arrays) -> Arrays:
        return dict(zip(self.names, self.session.run(self.names, inputs), strict=True))

    def unbatch(self, output: Arrays) -> list[Arrays]:
        rows = len(next(iter(output.values())))
        return [{name: array[row : row + 1] for name, array in output.items()} for row in range(rows)]

    def encode_response(self, output: Arrays) -> dict[str, Any]:
        return {"outputs": {name: array.tolist() for name, array in output.items()}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch-rows", type=int, default=1)
    parser.add_argument("--batch-delay-s", type=float, default=0.0)
    options = parser.parse_args()
    api = Model(options.model, options.batch_rows, options.batch_delay_s)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
