"""What runs a model: one verb, `run`, behind which onnxruntime and other engines stand."""
