"""`mlserve doctor` tells which engines are here, what they can do, and what to install for those that are not."""

import json
import os
import shutil
from pathlib import Path

import psutil
import pytest


def test_every_engine_is_told_with_its_devices_and_what_they_can_do(mlserve, mlserve_here):
    told = json.loads(mlserve("doctor", "--json").stdout)
    openvino, torch = told["engines"]["openvino"], told["engines"]["torch"]
    assert {"FP32", "INT8"} <= set(openvino["cpu"])
    assert ("BF16" in openvino["cpu"]) is bool({"avx512_bf16", "amx_bf16"} & set(told["machine"]["cpu_flags"]))
    assert torch["version"] == told["machine"]["packages"]["torch"]
    assert told["engines"]["compiler"] == (shutil.which("g++") or "")
    plain = mlserve_here("doctor").stdout
    assert f"openvino {told['machine']['packages']['openvino']}" in plain
    assert f"torch {torch['version']}" in plain


@pytest.mark.parametrize(("compiler", "advised"), [("/nowhere/g++", True), (shutil.which("true"), False)])
def test_without_a_compiler_the_advice_says_what_it_is_for(mlserve_here, monkeypatch, compiler, advised):
    monkeypatch.setenv("CXX", compiler)
    told = json.loads(mlserve_here("doctor", "--json").stdout)
    assert any("--engine torch-compiled will refuse" in line for line in told["advice"]) is advised


def test_doctor_tells_what_loads(mlserve_here):
    done = mlserve_here("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["providers"]["CPUExecutionProvider"] == ""
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["memory_bytes"] == psutil.virtual_memory().total
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert set(found["machine"]["cpu_flags"]) <= flags
    if "avx512_vnni" in flags:
        assert "avx512_vnni" in found["machine"]["cpu_flags"]
    plain = mlserve_here("doctor")
    assert "CPUExecutionProvider" in plain.stdout
    assert "memory" in plain.stdout


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("echo 'NVIDIA H200, 143771, 570.1'", ["NVIDIA H200"]),
        ("echo 'NVIDIA-SMI has failed'; exit 9", []),
        (r"printf '\377\376\n'", []),
    ],
)
def test_doctor_takes_whatever_nvidia_smi_says(mlserve_here, tmp_path, monkeypatch, answer, found):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = json.loads(mlserve_here("doctor", "--json").stdout)
    assert [gpu["name"] for gpu in told["machine"]["gpus"]] == found
    plain = "".join(mlserve_here("doctor").stdout.split())
    assert all("".join(advice.split()) in plain for advice in told["advice"])
