"""What may be said to `mlserve bench`: every flag, by the part of the work that it is about."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Answer", "Arrivals", "Batch", "Check", "ComputeType", "Data", "Device", "Directory", "Duration", "Engine",
    "Errors", "Expected", "FindMax", "Headers", "ImageSizes", "Inputs", "Join", "Label", "Lengths", "Like",
    "Locustfile", "Master", "MaxBatchRows", "MaxDelayMs", "MaxDuration", "MaxInFlight", "Model", "Percentile",
    "Precision", "Protocol", "Repeats", "Replay", "ReplaySpeed", "Resolution", "Rps", "Scenario", "Seed",
    "ServerTiming", "ServerWorkers", "Shape", "Slo", "Sweep", "Targets", "Tax", "Template", "Threads", "Timeout",
    "Users", "WarmUp", "Web", "WebPort", "What", "Workers",
]  # fmt: skip


def _option(panel: str, *names: str, **said: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **said)


_LOAD, _PAYLOAD, _MEASURED = "Load", "What is sent", "What is measured"
_GENERATORS, _SERVER, _MANY = "Generators", "The server, where bench starts it", "Many runs"

What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[URL | NAME[@VERSION|@ALIAS] | FILE.onnx]",
        help="What to load: a running server, or a model that is served for as long as it takes; "
        "the store's only model if omitted. With --sweep, further axes.",
        show_default=False,
    ),
]

Rps = Annotated[float | None, _option(_LOAD, help="Requests a second, open loop.", show_default="500")]
Users = Annotated[
    int | None,
    _option(_LOAD, help="Closed loop instead: so many at once, for finding the peak throughput.", show_default=False),
]
Arrivals = Annotated[
    str | None, _option(_LOAD, help="poisson (independent users) or constant.", show_default="poisson")
]
Shape = Annotated[
    str,
    _option(_LOAD, help="flat, ramp:2000, steps:100,200,400, spikes:5x1s/10s or bursts:1s/4s."),
]
Scenario = Annotated[
    str, _option(_LOAD, help="MLPerf's single-stream, multi-stream, server or offline.", show_default=False)
]
Replay = Annotated[
    Path | None,
    _option(_LOAD, help="A trace to send again: of mlserve record, or a file with times.", show_default=False),
]
ReplaySpeed = Annotated[float, _option(_LOAD, help="So many times as fast as it was recorded.")]
Seed = Annotated[int, _option(_LOAD, help="Of the schedule and of made-up rows.")]
MaxInFlight = Annotated[
    int, _option(_LOAD, help="Requests that may wait at once; one due beyond that is dropped and counted.")
]
Timeout = Annotated[str, _option(_LOAD, help="After which a request has failed.")]

Protocol = Annotated[
    str | None,
    _option(
        _PAYLOAD,
        help="rest, rest-binary, grpc, tfserving, tfserving-grpc, torchserve, sagemaker, mlflow or json; "
        "most URLs say it.",
        show_default="rest",
    ),
]
Batch = Annotated[
    str | None, _option(_PAYLOAD, help="Rows in each request, or several sizes: 1:0.7,8:0.3.", show_default="1")
]
Data = Annotated[
    Path | None,
    _option(
        _PAYLOAD,
        help="Rows to send: npz, npy, csv, parquet, jsonl, txt or a folder of images; made-up ones if omitted.",
    ),
]
Lengths = Annotated[
    str,
    _option(
        _PAYLOAD, help="Of made-up sequences: 8..128, 16:0.5,256:0.5 or lognormal:64,40.", show_default="the model's"
    ),
]
ImageSizes = Annotated[str, _option(_PAYLOAD, help="Of made-up images: 224,512x384.", show_default="the model's")]
Model = Annotated[str, _option(_PAYLOAD, help="The model, where a URL names none.", show_default=False)]
Inputs = Annotated[
    str,
    _option(
        _PAYLOAD,
        help="What the server takes, where it does not say: a model of the store or an ONNX file.",
        show_default=False,
    ),
]
Template = Annotated[
    str,
    _option(
        _PAYLOAD,
        help="How a request is written for --protocol json: a file, or text such as '{\"instances\": {{rows}}}'.",
        show_default=False,
    ),
]
Answer = Annotated[
    str, _option(_PAYLOAD, help="Where in a JSON answer the outputs are: outputs.scores.", show_default=False)
]
Headers = Annotated[
    list[str] | None,
    _option(
        _PAYLOAD,
        "--header",
        help="Sent with every request, and kept nowhere: 'authorization: Bearer KEY'.",
        show_default=False,
    ),
]
CaFile = Annotated[
    Path | None,
    _option(
        _PAYLOAD,
        help="Who may have signed the certificate of an https:// or grpcs:// server; else whom the system trusts.",
        show_default=False,
    ),
]
ClientCert = Annotated[
    Path | None, _option(_PAYLOAD, help="The certificate to show to a server that asks for one.", show_default=False)
]
ClientKey = Annotated[Path | None, _option(_PAYLOAD, help="Its key, where that is another file.", show_default=False)]
Metrics = Annotated[
    str,
    _option(
        _PAYLOAD,
        help="Where the server shows its counters, if not where it is asked: http://127.0.0.1:8002/metrics.",
        show_default=False,
    ),
]
Check = Annotated[
    bool,
    _option(_PAYLOAD, "--check", help="Compare every answer with what the server answered before the load."),
]
Expected = Annotated[
    Path | None, _option(_PAYLOAD, help="Compare with these answers instead: npz, a row for each row of --data.")
]

Duration = Annotated[str, _option(_MEASURED, help="How long to measure.")]
WarmUp = Annotated[
    str,
    _option(
        _MEASURED, help="The same load before it, left out of every figure: as long as it shows (auto), or a time."
    ),
]
Precision = Annotated[
    str, _option(_MEASURED, help="Go on until the interval of the percentile is that narrow: 5%.", show_default="off")
]
MaxDuration = Annotated[
    str | None, _option(_MEASURED, help="Measure no longer than this for --precision.", show_default="5m")
]
Percentile = Annotated[str, _option(_MEASURED, help="The percentile that is claimed: p50 to p99.99.")]
Errors = Annotated[
    str | None, _option(_MEASURED, help="The share of failed requests that is accepted.", show_default="1%")
]
ServerTiming = Annotated[
    str, _option(_MEASURED, help="Of which requests the server is asked where their time went: none, sampled, all.")
]

Workers = Annotated[int, _option(_GENERATORS, help="Processes that make the load, each on a core of its own.")]
Master = Annotated[
    str,
    _option(
        _GENERATORS,
        help="Wait at HOST:PORT until --workers generators have joined, from this machine or others.",
        show_default=False,
    ),
]
Join = Annotated[str, _option(_GENERATORS, help="Make load for the bench that waits at HOST:PORT, and nothing else.")]
Web = Annotated[bool, _option(_GENERATORS, "--web", help="Show Locust's own page meanwhile; it stays until Ctrl-C.")]
WebPort = Annotated[int, _option(_GENERATORS, help="The port of that page.")]
Locustfile = Annotated[
    Path | None,
    _option(
        _GENERATORS, help="Your own scenario: its tasks run when the schedule says, its requests are measured the same."
    ),
]

ServerWorkers = Annotated[int | None, _option(_SERVER, help="The server's processes.", show_default="1")]
Threads = Annotated[
    int | None, _option(_SERVER, help="Threads one model run uses.", show_default="the server's cores over its workers")
]
MaxBatchRows = Annotated[int | None, _option(_SERVER, help="Most rows the server runs together.", show_default="32")]
MaxDelayMs = Annotated[
    float | None, _option(_SERVER, help="How long a request may wait to share a batch.", show_default="0")
]
Device = Annotated[str | None, _option(_SERVER, help="cpu, cuda or cuda:N.", show_default="cpu")]
Engine = Annotated[
    str | None,
    _option(
        _SERVER,
        help="onnxruntime, openvino, torch or torch-compiled.",
        show_default="the one a version was made for",
    ),
]
ComputeType = Annotated[
    str | None,
    _option(_SERVER, help="Type to compute in: bf16, fp16, tf32 or fp32.", show_default="that of the weights"),
]

Sweep = Annotated[
    list[str] | None,
    _option(_MANY, help="A grid: batch=1,8,32 protocol=rest,grpc users=1,16 server_workers=1,2.", show_default=False),
]
Targets = Annotated[
    list[str] | None,
    _option(
        _MANY, "--target", help="Several servers under the same schedule, in one table: NAME=URL.", show_default=False
    ),
]
Repeats = Annotated[int, _option(_MANY, help="Rounds: in each, everything is run once, in another order.")]
FindMax = Annotated[bool, _option(_MANY, "--find-max", help="Find the highest rate that meets --slo.")]
Slo = Annotated[str, _option(_MANY, help="The objective of --find-max: p99=50ms.", show_default=False)]
Resolution = Annotated[str, _option(_MANY, help="How near --find-max comes to the highest rate.")]
Tax = Annotated[
    bool, _option(_MANY, "--tax", help="What each protocol adds to the model's own time, and where it goes.")
]

Like = Annotated[
    Path | None,
    _option(
        _MANY,
        metavar="RUN | REPORT | production.toml",
        help="The same requests at the same instants again, on the same model: a run, a folder of runs, report.json "
        "or production.toml. Name another model or URL to ask that instead.",
        show_default=False,
    ),
]

Directory = Annotated[
    Path | None, typer.Option("--out", help="Folder for the run, or the runs.", show_default="a new one in runs/")
]
Label = Annotated[str, typer.Option(help="What reports call the run.", show_default=False)]
