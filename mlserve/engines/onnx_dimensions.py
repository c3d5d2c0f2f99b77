"""The shapes an ONNX file declares, with the names of its dynamic dimensions."""

from pathlib import Path

from mlserve.model.tensors import Dims

__all__ = ["declared_shapes"]


def declared_shapes(path: Path) -> dict[str, Dims]:
    """Input or output -> its shape, `(batch, 128)`; a dimension without a name or number is named `<tensor>_<axis>`.

    Empty for a file that is not ONNX.
    """
    if path.suffix != ".onnx":
        return {}
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    return {
        value.name: tuple(
            dim.dim_value or dim.dim_param or f"{value.name}_{axis}"
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        )
        for value in (*graph.input, *graph.output)
    }
