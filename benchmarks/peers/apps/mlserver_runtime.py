"""MLServer's way of serving any ONNX model: a runtime of one's own, named in `model-settings.json`."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """The file of `parameters.uri`, on one thread."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, ["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        outputs = zip(self.names, self.session.run(self.names, inputs), strict=True)
        encoded = [NumpyCodec.encode_output(name, array) for name, array in outputs]
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=encoded)
