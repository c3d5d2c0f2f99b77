"""Which dimensions vary, found out by running."""

import numpy as np
import pytest

from mlserve.model.tensors import TensorSpec
from mlserve.optimize.importers.shapes import Unfit, default_sizes, fix_rigid_dims, output_specs, rows_mix

X = TensorSpec("x", "float32", ("batch", "length"))
SIZES = {"batch": 3, "length": 16}


def test_dimensions_that_work_in_any_size_stay_open():
    def run(inputs):
        return {"mean": inputs["x"].mean(1), "same": inputs["x"], "longer": np.pad(inputs["x"], ((0, 0), (0, 1)))}

    assert fix_rigid_dims(run, [X], SIZES) == (X,)
    assert [str(spec) for spec in output_specs(run, [X], SIZES)] == [
        "mean:float32:batch",
        "same:float32:batch,length",
        "longer:float32:batch,longer_1",
    ]


def test_a_length_the_model_insists_on_is_fixed():
    weight = np.ones((16, 2), np.float32)
    assert fix_rigid_dims(lambda inputs: {"y": inputs["x"] @ weight}, [X], SIZES) == (
        TensorSpec("x", "float32", ("batch", 16)),
    )


def test_rows_the_model_insists_on_are_fixed():
    def one_row(inputs):
        if len(inputs["x"]) != 1:
            raise ValueError("one row, please")
        return {"y": inputs["x"]}

    (spec,) = fix_rigid_dims(one_row, [X], SIZES)
    assert spec.shape[0] == 1


def test_a_model_without_a_row_for_each_row_has_no_open_rows():
    (spec,) = fix_rigid_dims(lambda inputs: {"y": inputs["x"].sum(0)}, [X], SIZES)
    assert spec.shape == (3, "length")


def test_a_model_that_never_runs_is_unfit():
    def broken(inputs):
        raise RuntimeError("shapes\ncannot be multiplied")

    with pytest.raises(Unfit, match="cannot be multiplied"):
        fix_rigid_dims(broken, [X], SIZES)


def test_rows_that_mix_are_noticed():
    assert rows_mix(lambda inputs: {"y": inputs["x"] - inputs["x"].mean(0)}, [X], SIZES)
    assert not rows_mix(lambda inputs: {"y": inputs["x"] * 2}, [X], SIZES)


def test_default_sizes_are_small_for_rows_and_real_for_images():
    image = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
    assert default_sizes([image]) == {"batch": 3, "height": 224, "width": 224}
