"""What is said to `mlserve bench` and contradicts itself, or the world: one clear line, before anything is started."""

import socket

import pytest
from typer.testing import CliRunner

from mlserve.cli.main import app


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs `mlserve bench ARGUMENTS...` in this process and in an empty folder; its exit code, stdout and stderr."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("MLSERVE_STORE", raising=False)

    def run(*arguments):
        done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        assert list(folder.iterdir()) == []
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def said_in(tiny_onnx, tmp_path_factory):
    """Puts real files and a free port into arguments: TINY, TRACE, ROWS, PORT."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "trace.csv").write_text("at_s\n0.0\n0.1\n0.3\n")
    (folder / "rows.csv").write_text("x\n1\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    known = {"TINY": tiny_onnx, "TRACE": folder / "trace.csv", "ROWS": folder / "rows.csv", "PORT": port}

    def written(arguments):
        for word, meaning in known.items():
            arguments = [part.replace(word, str(meaning)) for part in arguments]
        return arguments

    return written


REFUSED = {
    # What cannot be, whatever else is said.
    "--rps 0": "--rps 0 cannot be sent",
    "--rps -5": "--rps -5",
    "--rps nan": "--rps nan",
    "--rps 2e6": "--rps 2e+06",
    "--rps 0.5 --duration 1s": "less than one request",
    "--duration 0s": "'0s'",
    "--duration soon": "'soon' is no duration",
    "--warm-up -1s": "'-1s'",
    "--batch 0": "--batch",
    "--batch 1:0.5,8:0.6": "--batch",
    "--batch many": "--batch",
    "--max-in-flight 0": "--max-in-flight 0",
    "--timeout 0s": "'0s'",
    "--seed -1": "--seed -1",
    "--protocol soap": "--protocol 'soap'",
    "--arrivals burst": "--arrivals 'burst'",
    "--percentile p100": "--percentile 'p100'",
    "--percentile often": "--percentile 'often'",
    "--errors 200%": "--errors 2 is out of range",
    "--errors few": "'few' is no ratio",
    "--shape hill": "--shape 'hill'",
    "--shape spikes:5x2s/1s": "does not fit",
    "--scenario rush-hour": "--scenario 'rush-hour'",
    "--users 0": "--users 0",
    "--workers 0": "--workers 0",
    "--server-workers 0": "--server-workers 0",
    "--threads 0": "--threads 0",
    "--max-batch-rows 0": "--max-batch-rows 0",
    "--max-delay-ms nan": "--max-delay-ms nan",
    "--device abacus": "'abacus' is no device",
    "--server-timing often": "--server-timing 'often'",
    "--lengths long": "--lengths",
    "--image-sizes big": "--image-sizes",
    "--repeats 0": "--repeats 0",
    "--data missing.csv": "missing.csv",
    "--replay missing.parquet": "missing.parquet",
    "--locustfile missing.py": "missing.py",
    "--out TINY/run": "cannot be written",
    "--precision 0%": "--precision",
    "--replay TRACE --replay-speed 0": "--replay-speed 0",
    # Two that contradict each other.
    "--users 4 --rps 100": "leave --rps or --users out",
    "--users 4 --arrivals poisson": "leave --arrivals or --users out",
    "--users 4 --replay TRACE": "leave --replay or --users out",
    "--users 4 --shape ramp:10": "--shape contradicts --users 4",
    "--arrivals replay": "--replay FILE",
    "--arrivals closed": "--users",
    "--scenario single-stream --rps 10": "--rps contradicts --scenario single-stream",
    "--scenario server --batch 8": "--batch contradicts --scenario server",
    "--scenario server --users 3": "--users contradicts --scenario server",
    "--scenario offline --shape ramp:10": "--shape contradicts --scenario offline",
    "--replay TRACE --rps 5": "--rps contradicts --replay",
    "--replay TRACE --shape ramp:10": "--shape contradicts --replay",
    "--replay TRACE --scenario server": "--scenario contradicts --replay",
    "--replay TRACE --batch 2": "--batch contradicts --replay",
    "--replay TRACE --lengths 8": "--lengths contradicts --replay",
    "--replay TRACE --precision 5%": "--precision contradicts --replay",
    "--replay-speed 2": "--replay-speed says something of --replay",
    "--shape ramp:900 --precision 5%": "--precision contradicts --shape",
    "--max-duration 1m": "--max-duration says something of --precision",
    "--precision 5% --duration 2m --max-duration 1m": "--max-duration 60 s is less than --duration 120 s",
    "--expected ROWS": "--expected says something of --data",
    "--data ROWS --lengths 8": "--lengths contradicts --data",
    "--model other": "--model is for a URL",
    "--inputs other.onnx": "--inputs is for a URL",
    "--protocol json": "--protocol json is for a URL",
    "--template {{rows}}": "--template is for a URL",
    "--answer scores": "--answer is for a URL",
    "--header a:b": "--header is for a URL",
    "--locustfile TRACE --check": "--check contradicts --locustfile, which says itself what is sent",
    "--locustfile TRACE --data ROWS": "--data contradicts --locustfile",
    "--locustfile TRACE --header a:b": "--header contradicts --locustfile",
    # Kinds of run that are not one another.
    "--find-max": "--slo",
    "--find-max --slo fast": "'fast' is no limit",
    "--find-max --slo p99=50ms --tax": "one at a time",
    "--find-max --slo p99=50ms --users 4": "a steady rate",
    "--find-max --slo p99=50ms --resolution fine": "'fine' is no ratio",
    "--slo p99=50ms": "--slo says something of --find-max",
    "--web-port 80": "--web-port says something of --web",
    "--resolution 1%": "--resolution says something of --find-max",
    "--tax --sweep batch=1,2": "one at a time",
    "--tax --users 2": "--users contradicts --tax",
    "--tax --protocol grpc": "--protocol contradicts --tax",
    "--tax --batch 1:0.5,2:0.5": "--tax asks with requests of one size",
    "--tax --out results": "--out contradicts --tax",
    "--tax --shape ramp:10": "--shape contradicts --tax",
    "--sweep batch": "'batch' is no axis",
    "--sweep colour=red": "--sweep colour: there is no such axis",
    "--sweep batch=1,1": "a value is given twice",
    "--sweep batch=one": "--sweep batch='one'",
    "--sweep batch=1,2 --web": "--web contradicts --sweep",
    "--sweep batch=1,2 --out TINY": "TINY",
    "--repeats 2 --master 127.0.0.1:PORT": "--master contradicts",
    "--repeats 2 --label mine": "--label contradicts",
    "--target =http://127.0.0.1:PORT": "names nothing",
    "--master here": "--master 'here' is no address",
    "--join 127.0.0.1:PORT": "what is loaded contradicts --join",
    "more": "one thing is loaded at a time",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_a_model_of_our_own_cannot_be_asked_is_one_clear_line(bench, said_in, said):
    status, printed, complaint = bench(*said_in(["TINY", *said.split()]))
    assert (status, printed) == (2, ""), complaint
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert said_in([REFUSED[said]])[0] in complaint


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("missing.onnx", "missing.onnx"),
        ("missing", "no model 'missing'"),
        ("", "holds no model"),
        ("--sweep batch=1,2", "holds no model"),
        ("https://127.0.0.1:PORT", "cannot be reached"),
        ("http://127.0.0.1:PORT --ca-file missing.pem", "--ca-file missing.pem cannot be used"),
        ("http://127.0.0.1:PORT --client-key key.pem", "--client-key belongs to a certificate"),
        ("ftp://127.0.0.1:1", "is no protocol of mlserve"),
        ("http://127.0.0.1", "names no port"),
        ("http://127.0.0.1:PORT", "cannot be reached"),
        ("grpc://127.0.0.1:PORT/m", "cannot be reached"),
        ("http://127.0.0.1:PORT/metrics", "is of no protocol"),
        ("http://127.0.0.1:PORT --protocol grpc", "contradicts"),
        ("http://127.0.0.1:PORT --device cpu", "runs already"),
        ("http://127.0.0.1:PORT --sweep threads=1,2", "runs already"),
        ("http://127.0.0.1:PORT --tax", "--tax opens the model in process too"),
        ("http://127.0.0.1:PORT/invocations", "add --protocol sagemaker or mlflow"),
        ("http://127.0.0.1:PORT/ask --protocol json", "say with --template"),
        ("http://127.0.0.1:PORT --template {{rows}}", "--template and --answer are for --protocol json"),
        ("http://127.0.0.1:PORT --header key", "--header cannot be read"),
        ("http://127.0.0.1:PORT --header connection:close", "--header connection cannot be chosen"),
        ("http://127.0.0.1:PORT/v2/models/a --model b", "--model b contradicts"),
        ("--target a=http://127.0.0.1:PORT --target a=http://127.0.0.1:1", "--target a is given twice"),
        ("--join here", "--join 'here' is no address"),
        ("--join 127.0.0.1:PORT --rps 5", "--rps contradicts --join"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(bench, said_in, said, complaint):
    status, printed, told = bench(*said_in(said.split()))
    assert (status, printed) == (2, ""), told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert complaint in told
