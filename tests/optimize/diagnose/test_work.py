"""Work is counted from shapes, exactly."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.optimize.diagnose.facts import Tensor
from mlserve.optimize.diagnose.work import Executed, flops, precision, traffic

small = st.integers(1, 40)


def f32(*shape):
    return Tensor("float32", shape)


@given(rows=st.lists(small, max_size=2), m=small, k=small, n=small, packed=st.booleans())
def test_a_product_is_two_m_k_n_whether_its_weights_are_seen_or_packed_away(rows, m, k, n, packed):
    inputs = [f32(*rows, m, k)] if packed else [f32(*rows, m, k), f32(k, n)]
    assert flops(Executed("MatMul", inputs, [f32(*rows, m, n)])) == 2 * prod(rows) * m * k * n


@given(m=small, k=small, n=small, turned=st.booleans())
def test_a_gemm_knows_when_its_left_side_is_turned(m, k, n, turned):
    given_left = f32(k, m) if turned else f32(m, k)
    assert flops(Executed("Gemm", [given_left], [f32(m, n)], {}, {"transA": int(turned)})) == 2 * m * k * n


@given(rows=small, channels=small, groups=st.integers(1, 4), out=small, kernel=st.integers(1, 5), side=small)
def test_a_convolution_sums_the_channels_of_its_group_times_the_kernel(rows, channels, groups, out, kernel, side):
    kernel_shape = f32(out * groups, channels, kernel, kernel)
    executed = Executed(
        "Conv", [f32(rows, channels * groups, side, side)], [f32(rows, out * groups, side, side)], {1: kernel_shape}
    )
    assert flops(executed) == 2 * rows * out * groups * side * side * channels * kernel * kernel


@pytest.mark.parametrize(
    ("executed", "expected"),
    [
        # A pointwise convolution of ResNet-50: 64 -> 256 channels on 56 x 56.
        (Executed("Conv", [f32(1, 64, 56, 56)], [f32(1, 256, 56, 56)], {1: f32(256, 64, 1, 1)}), 2 * 64 * 256 * 56**2),
        (Executed("ConvInteger", [f32(1, 3, 8, 8), f32(4, 3, 3, 3)], [f32(1, 4, 8, 8)]), 2 * 4 * 64 * 27),
        # One-dimensional.
        (Executed("Conv", [f32(2, 8, 100)], [f32(2, 16, 100)], {1: f32(16, 8, 5)}), 2 * 2 * 16 * 100 * 8 * 5),
        (Executed("QLinearConv", [f32(1, 3, 8, 8)], [f32(1, 4, 8, 8)], {3: f32(4, 3, 3, 3)}), 2 * 4 * 64 * 27),
        (Executed("ConvTranspose", [f32(1, 8, 4, 4)], [f32(1, 3, 8, 8)], {1: f32(8, 3, 2, 2)}), 2 * 8 * 16 * 3 * 4),
        # OpenVINO's kernels of grouped convolutions have a dimension for the group.
        (Executed("Convolution", [f32(1, 8, 4, 4)], [f32(1, 8, 4, 4)], {1: f32(8, 1, 1, 3, 3)}), 2 * 8 * 16 * 9),
        (Executed("MatMulNBits", [f32(1, 256)], [f32(1, 64)], {1: f32(64, 8, 16)}, {"K": 256, "N": 64}), 2 * 256 * 64),
        # BERT's layer: 128 tokens of 768: projections of [128, 768] by [768, 2304], scores and weighted values.
        (
            Executed("Attention", [f32(1, 128, 768)], [f32(1, 128, 768)], {1: f32(768, 2304)}),
            2 * 128 * 768 * 2304 + 4 * 128 * 128 * 768,
        ),
        (
            Executed("MultiHeadAttention", [f32(2, 16, 64), f32(2, 24, 64), f32(2, 24, 64)], [f32(2, 16, 64)]),
            2 * 2 * 16 * 24 * (64 + 64),
        ),
        (
            Executed("LSTM", [f32(10, 2, 32)], [f32(10, 2, 2, 64)], {}, {"hidden_size": 64}),
            2 * 10 * 2 * 2 * 4 * 64 * (32 + 64),
        ),
        (Executed("Relu", [f32(8, 8)], [f32(8, 8)]), 0),
        (Executed("MatMul", [], []), 0),
        (Executed("Conv", [f32(1, 3, 8, 8)], [f32(1, 4, 8, 8)]), 0),
    ],
)
def test_known_work(executed, expected):
    assert flops(executed) == expected


def test_bytes_are_every_value_once_and_weights_are_told_apart():
    seen = Executed("MatMul", [f32(4, 8), f32(8, 2)], [f32(4, 2)], {1: f32(8, 2)})
    packed = Executed("MatMul", [f32(4, 8)], [f32(4, 2)], {1: f32(8, 2)})
    assert traffic(seen) == traffic(packed) == (4 * (32 + 16 + 8), 4 * 16)
    int8 = Executed("MatMulInteger", [Tensor("uint8", (4, 8))], [Tensor("int32", (4, 2))], {1: Tensor("int8", (8, 2))})
    assert traffic(int8) == (32 + 16 + 4 * 8, 16)


def test_a_lookup_reads_what_it_gives_and_a_view_moves_nothing():
    assert traffic(Executed("Gather", [Tensor("int64", (4,))], [f32(4, 8)], {0: f32(30_000, 8)})) == (2 * 4 * 32, 0)
    assert traffic(Executed("Reshape", [f32(4, 8)], [f32(32)])) == (0, 0)
    assert traffic(Executed("Transpose", [f32(4, 8)], [f32(8, 4)])) == (2 * 128, 0)


@pytest.mark.parametrize(
    ("operator", "dtype", "attributes", "expected"),
    [
        ("MatMul", "float32", {}, "fp32"),
        ("MatMul", "float16", {}, "fp16"),
        ("Convolution", "bf16", {}, "bf16"),
        ("FullyConnected", "u8", {}, "int8"),
        ("DynamicQuantizeMatMul", "float32", {}, "int8"),
        ("QLinearAdd", "uint8", {}, "int8"),
        ("MatMulNBits", "float32", {"bits": 4}, "int4"),
        ("Gather", "int64", {}, "int64"),
    ],
)
def test_the_precision_is_that_of_the_kernel(operator, dtype, attributes, expected):
    assert precision(Executed(operator, [], [Tensor(dtype, (1,))], {}, attributes)) == expected
