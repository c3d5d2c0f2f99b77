"""FastAPI and onnxruntime as people write it by hand: one run a request.

    python fastapi_app.py --model MODEL.onnx --port PORT [--threads]

`POST /predict` takes `{"inputs": {name: rows}}` and answers `{"outputs": {name: rows}}`. `--threads`: the handler is a
plain function, which FastAPI runs on a thread, instead of a coroutine, which runs the model on the event loop.
"""

import argparse
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Request(BaseModel):
    """Rows by the name of the input."""

    inputs: dict[str, list[Any]]


class Answer(BaseModel):
    """Rows by the name of the output."""

    outputs: dict[str, list[Any]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args()
    uvicorn.run(application(options.model, on_threads=options.threads), port=options.port, log_level="warning")


def application(model: str, *, on_threads: bool) -> FastAPI:
    app = FastAPI()
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = session_options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, session_options, ["CPUExecutionProvider"])
    types = {each.name: TYPES[each.type] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]

    def run(request: Request) -> Answer:
        inputs = {name: np.asarray(request.inputs[name], dtype) for name, dtype in types.items()}
        outputs = session.run(names, inputs)
        return Answer(outputs={name: array.tolist() for name, array in zip(names, outputs, strict=True)})

    if on_threads:

        @app.post("/predict")
        def predict_on_thread(request: Request) -> Answer:
            return run(request)

    else:

        @app.post("/predict")
        async def predict(request: Request) -> Answer:
            return run(request)

    return app


if __name__ == "__main__":
    main()
