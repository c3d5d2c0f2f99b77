"""The Open Inference Protocol (V2) as bytes, both directions: `serve` reads what `bench` writes.

One file an encoding (`rest`, `grpc`), each with its four functions side by side, so that a round trip can be tested.
"""
