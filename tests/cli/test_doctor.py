"""`mlserve doctor` tells which engines are here, what they can do, and what to install for those that are not."""

import json
import shutil

import pytest


def test_every_engine_is_told_with_its_devices_and_what_they_can_do(mlserve):
    told = json.loads(mlserve("doctor", "--json").stdout)
    openvino, torch = told["engines"]["openvino"], told["engines"]["torch"]
    assert {"FP32", "INT8"} <= set(openvino["cpu"])
    assert ("BF16" in openvino["cpu"]) is bool({"avx512_bf16", "amx_bf16"} & set(told["machine"]["cpu_flags"]))
    assert torch["version"] == told["machine"]["packages"]["torch"]
    assert told["engines"]["compiler"] == (shutil.which("g++") or "")
    plain = mlserve("doctor").stdout
    assert f"openvino {told['machine']['packages']['openvino']}" in plain
    assert f"torch {torch['version']}" in plain


@pytest.mark.parametrize(("compiler", "advised"), [("/nowhere/g++", True), (shutil.which("true"), False)])
def test_without_a_compiler_the_advice_says_what_it_is_for(mlserve, monkeypatch, compiler, advised):
    monkeypatch.setenv("CXX", compiler)
    told = json.loads(mlserve("doctor", "--json").stdout)
    assert any("--engine torch-compiled will refuse" in line for line in told["advice"]) is advised
