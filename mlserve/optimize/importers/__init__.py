"""Trained models of other formats to ONNX. What runs a model's own code does so in a process of its own."""
