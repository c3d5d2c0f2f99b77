"""What torch's exporters lack to read TorchScript: an operator, and two other ways to a graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

__all__ = ["know_unflatten", "program_of", "replayed"]


def know_unflatten() -> None:
    """Teaches the older exporter `unflatten` as attention layers use it.

    Its own rule loses the number of dimensions, and with it every transformer that was traced.
    """
    from torch.onnx import symbolic_helper

    def unflatten(graph: Any, value: Any, dim: Any, sizes: Any) -> Any:
        axis = symbolic_helper._get_const(dim, "i", "dim") % symbolic_helper._get_tensor_rank(value)  # noqa: SLF001  # as torch's own rules do
        flat = graph.op("Constant", value_t=torch.tensor([-1]))
        parts = [graph.op("Reshape", size, flat) for size in symbolic_helper._unpack_list(sizes)]  # noqa: SLF001  # as above
        rest = symbolic_helper._get_tensor_rank(value) - axis - 1  # noqa: SLF001  # as above
        if rest:
            raise NotImplementedError("unflatten of an inner dimension")
        kept = graph.op("Constant", value_t=torch.zeros(axis, dtype=torch.int64))  # Reshape: 0 keeps the size
        result = graph.op("Reshape", value, graph.op("Concat", kept, *parts, axis_i=0))
        result.setType(value.type().with_sizes([None] * (axis + len(parts))))
        return result

    torch.onnx.register_custom_op_symbolic("aten::unflatten", unflatten, 17)


def program_of(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The module as a torch.export program, its dimensions open where they can be; for TorchScript without branches.

    Raises whatever torch's converter does for what it cannot read.
    """
    from torch._export.converter import TS2EPConverter

    with torch.no_grad():
        program = TS2EPConverter(module, arguments, keywords).convert()
        return program.run_decompositions({torch.ops.aten._transformer_encoder_layer_fwd.default: _encoder_layer})  # noqa: SLF001  # the name that traced files have it by


def replayed(run: Callable[..., Any], module: Any, tensors: tuple[torch.Tensor, ...]) -> Any:
    """The operators of one run of a TorchScript module, as a graph of torch.fx; `run` calls the module on tensors.

    Its weights ask for gradients meanwhile: else torch's encoder layers take a fused path that ONNX has no name for.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.jit.optimized_execution(False):
        graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    for name, value in vars(graph).items():
        if isinstance(value, torch.Tensor):
            setattr(graph, name, value.detach())
    return graph


def _encoder_layer(
    source: torch.Tensor, width: int, heads: int, in_weight: Any, in_bias: Any, out_weight: Any, out_bias: Any,
    use_gelu: Any, norm_first: Any, eps: float, norm1_weight: Any, norm1_bias: Any, norm2_weight: Any, norm2_bias: Any,
    first_weight: Any, first_bias: Any, second_weight: Any, second_bias: Any, mask: Any = None, mask_type: Any = None,
) -> torch.Tensor:  # fmt: skip
    """nn.TransformerEncoderLayer in single operators; traced without gradients, torch leaves it as one.

    `source` [rows, length, width]; `mask_type` 0: [length, length], 1: padding [rows, length]. The parameters are those
    of ATen's `_transformer_encoder_layer_fwd`.
    """

    def attended(value: torch.Tensor) -> torch.Tensor:
        turned = value.transpose(0, 1)
        result, _ = functional.multi_head_attention_forward(
            turned, turned, turned, width, heads, in_weight, in_bias, None, None, False, 0.0, out_weight, out_bias,
            training=False, need_weights=False, attn_mask=mask if mask_type == 0 else None,
            key_padding_mask=mask if mask_type == 1 else None,
        )  # fmt: skip
        return result.transpose(0, 1)

    def fed_forward(value: torch.Tensor) -> torch.Tensor:
        inner = functional.linear(value, first_weight, first_bias)
        inner = functional.gelu(inner) if use_gelu else functional.relu(inner)
        return functional.linear(inner, second_weight, second_bias)

    def norm1(value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, (width,), norm1_weight, norm1_bias, eps)

    def norm2(value: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(value, (width,), norm2_weight, norm2_bias, eps)

    if norm_first:
        middle = source + attended(norm1(source))
        return middle + fed_forward(norm2(middle))
    middle = norm1(source + attended(source))
    return norm2(middle + fed_forward(middle))
