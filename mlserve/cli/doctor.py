"""`mlserve doctor`: what this machine can do, and what to install for what is missing."""

import os
from shutil import which
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, ending_well, out, print_json
from mlserve.units import format_bytes

if TYPE_CHECKING:
    from mlserve.engines.torch_engine import TorchFacts
    from mlserve.runs.machine import Machine

__all__ = ["doctor"]

_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
# OpenVINO tells other capabilities too, such as EXPORT_IMPORT.
_PRECISIONS = {"FP32", "FP16", "BF16", "INT8", "INT4", "FP8"}
_OPTIONAL = {
    "openvino": ("the engine openvino", "pip install 'mlserve[openvino]'"),
    "sentence-transformers": ("export of sentence-transformers folders", "pip install 'mlserve[text]'"),
    "pygrpc-native": ("the quick gRPC transport (grpcio serves without it)", "pip install pygrpc-native"),
    "uvloop": ("the quick event loop", "pip install uvloop"),
}


@ending_well
def doctor(json: JsonFlag = False) -> None:
    """Show what this machine can do: instruction sets, cores, memory, GPU, engines and the devices they really load."""
    from mlserve.engines.onnx_engine import loadable_providers
    from mlserve.engines.openvino_engine import openvino_devices
    from mlserve.engines.torch_engine import torch_facts
    from mlserve.runs.machine import package_version, read_machine

    machine = read_machine()
    providers = loadable_providers()
    openvino = openvino_devices()
    torch = torch_facts()
    compiler = which(os.environ.get("CXX", "g++")) or ""
    missing = [package for package in _OPTIONAL if not package_version(package)]
    advice = [*_advice(machine, providers, missing), *_engine_advice(machine, providers, torch, compiler)]
    if json:
        engines = {"openvino": openvino, "torch": torch, "compiler": compiler}
        print_json({"machine": machine, "providers": providers, "engines": engines, "advice": advice})
        return
    _print_machine(machine)
    _print_providers(providers)
    _print_engines(machine, openvino, torch, compiler)
    for line in advice:
        out.print(f"[yellow]-[/] {escape(line)}", highlight=False)


def _print_machine(machine: "Machine") -> None:
    facts = Table(show_header=False, box=None)
    facts.add_row("cpu", machine.cpu)
    facts.add_row("cores", str(machine.cores))
    facts.add_row("instruction sets", " ".join(machine.cpu_flags) or "none of those that matter here")
    facts.add_row("memory", format_bytes(machine.memory_bytes))
    for gpu in machine.gpus:
        facts.add_row("gpu", f"{gpu.name}, {format_bytes(gpu.memory_bytes)}, driver {gpu.driver}")
    if not machine.gpus:
        facts.add_row("gpu", "none found (no answer from nvidia-smi)")
    facts.add_row("system", f"{machine.system}, Python {machine.python}")
    facts.add_row("packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items()))
    out.print(facts, highlight=False)


def _print_providers(providers: dict[str, str]) -> None:
    table = Table("execution provider", "loads", "why not", title="onnxruntime", title_justify="left")
    for name, fault in providers.items():
        table.add_row(name, "[red]no[/]" if fault else "[green]yes[/]", escape(fault))
    out.print(table)


def _print_engines(
    machine: "Machine", openvino: dict[str, tuple[str, ...]], torch: "TorchFacts", compiler: str
) -> None:
    table = Table("engine", "device", "what it is", "computes in", title="other engines", title_justify="left")
    for device, (name, *capabilities) in openvino.items():
        shown = " ".join(sorted(each.lower() for each in capabilities if each in _PRECISIONS))
        table.add_row(f"openvino {machine.packages.get('openvino', '')}", escape(device), escape(name), shown)
    if not openvino:
        table.add_row("openvino", "[red]none[/]", "not installed", "")
    for number, name in enumerate(["", *torch.cuda_devices]):
        device = f"cuda:{number - 1}" if number else "cpu"
        table.add_row(f"torch {torch.version}", device, escape(name or machine.cpu), "the types of the program")
    table.add_row("torch-compiled", "", escape(f"compiler {compiler}") if compiler else "[red]no C++ compiler[/]", "")
    out.print(table)


def _engine_advice(machine: "Machine", providers: dict[str, str], torch: "TorchFacts", compiler: str) -> list[str]:
    lines = []
    if not compiler:
        lines.append("no C++ compiler: --engine torch-compiled will refuse; install one, such as g++")
    tensorrt = providers.get("TensorrtExecutionProvider")
    if machine.gpus and tensorrt:
        lines.append(
            f"--device tensorrt will refuse, TensorRT does not load ({tensorrt}): install the major version that this "
            "onnxruntime names, such as pip install 'tensorrt-cu13<11', and put its folder on LD_LIBRARY_PATH"
        )
    if machine.gpus and not torch.cuda_devices:
        lines.append("a GPU is here, but PyTorch finds none: install a build with CUDA, see pytorch.org/get-started")
    return lines


def _advice(machine: "Machine", providers: dict[str, str], missing: list[str]) -> list[str]:
    """One line for each thing that could be better: what is missing, what for, how to get it."""
    lines = [f"{package} is not installed: {_OPTIONAL[package][0]}; {_OPTIONAL[package][1]}" for package in missing]
    cuda = providers.get("CUDAExecutionProvider")
    if machine.gpus and cuda is None:
        lines.append("a GPU is here, but onnxruntime was built without CUDA: pip install onnxruntime-gpu")
    elif machine.gpus and cuda:
        lines.append(f"a GPU is here, but CUDA does not load ({cuda}): pip install 'onnxruntime-gpu[cuda,cudnn]'")
    elif cuda != "":  # where CUDA loads there is a GPU, whatever nvidia-smi says
        lines.append("no GPU: --device cuda will refuse to start; everything else works on the CPU")
    lines += _instruction_advice(machine)
    if machine.cores < 2:
        lines.append("one core: server and load generator share it, so bench cannot tell one from the other")
    return lines


def _instruction_advice(machine: "Machine") -> list[str]:
    flags = set(machine.cpu_flags)
    if not flags and not machine.system.startswith("Linux"):
        return ["which instruction sets this CPU has is only told on Linux"]
    lines = []
    if not flags & {"avx2", "asimd"}:
        lines.append("neither AVX2 nor NEON: expect every model to be slow here")
    if not flags & _INT8_FLAGS:
        lines.append(
            "no int8 instructions (VNNI, AMX, dot product): int8 saves memory here, but may be slower than fp32"
        )
    return lines
