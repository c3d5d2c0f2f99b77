"""The workflows that we ship, and the examples of the page and of the help: what they say, the command knows."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from typer.main import get_command

from mlserve.cli.main import app


def workflow_commands(path):
    """Every line of `run:` in a workflow, and the names of its inputs."""
    document = yaml.safe_load(path.read_text())
    on = document.get("on", document.get(True))  # YAML 1.1 reads `on` as true
    lines = []
    for job in document["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            lines += step.get("run", "").splitlines()
    return on, [line.strip() for line in lines]


def flags_of(line):
    return {word.partition("=")[0] for word in line.split() if word.startswith("--") and word != "--"}


@pytest.fixture(scope="module")
def gate_flags():
    command = get_command(app).commands["gate"]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def root(request):
    return request.config.rootpath


def test_the_workflow_for_users_says_only_what_the_command_knows(request, gate_flags):
    on, lines = workflow_commands(root(request) / ".github" / "workflows" / "latency-gate.yml")
    (command,) = [line for line in lines if line.startswith("mlserve gate")]
    assert flags_of(command) <= gate_flags
    assert {"--max-regression", "--junit", "--budget"} <= flags_of(command)
    assert {"base", "candidate", "limits"} <= set(on["workflow_call"]["inputs"])


def test_our_own_workflow_says_only_what_the_command_knows(request, gate_flags):
    on, lines = workflow_commands(root(request) / ".github" / "workflows" / "own-gate.yml")
    (command,) = [line for line in lines if line.startswith("python benchmarks/own_gate.py")]
    ours, _, gates = command.partition(" -- ")
    assert flags_of(gates) <= gate_flags
    assert flags_of(ours) <= {"--base", "--model", "--out", "--report"}
    assert "pull_request" in on


@pytest.mark.parametrize("name", ["latency-gate.yml", "own-gate.yml"])
def test_nothing_that_strangers_write_becomes_part_of_a_script(request, name):
    """Whoever opens a pull request chooses such values: in a script's text they would be run."""
    _, lines = workflow_commands(root(request) / ".github" / "workflows" / name)
    assert lines
    assert not [line for line in lines if "${{" in line]


GH = """#!{python}
import json, os, sys
from pathlib import Path

said, kept = sys.argv[1:], Path(os.environ["KEPT"])
bodies = json.loads(kept.read_text()) if kept.exists() else []
sent = next((Path(word.removeprefix("body=@")).read_text() for word in said if word.startswith("body=@")), None)
if sent is None:
    assert "startswith(env.MARK)" in said[said.index("--jq") + 1]
    print(*(number for number, body in enumerate(bodies) if body.startswith(os.environ["MARK"])), sep="\\n")
elif "PATCH" in said:
    bodies[int(said[said.index("PATCH") + 1].rpartition("/")[2])] = sent
else:
    bodies.append(sent)
kept.write_text(json.dumps(bodies))
"""


def test_every_gate_of_a_pull_request_has_a_comment_of_its_own_which_is_replaced(request, tmp_path, monkeypatch):
    """The script of the workflow, before a `gh` that keeps comments in a file."""
    document = yaml.safe_load((root(request) / ".github" / "workflows" / "latency-gate.yml").read_text())
    (step,) = [step for step in document["jobs"]["gate"]["steps"] if step.get("name") == "Comment"]
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text(GH.format(python=sys.executable))
    gh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gh.parent}:{os.environ['PATH']}")
    said = {"KEPT": "kept.json", "RUNNER_TEMP": "temp", "GITHUB_REPOSITORY": "a/b", "NUMBER": "7"}
    (tmp_path / "temp").mkdir()
    comment = tmp_path / "gate" / "comment.md"
    comment.parent.mkdir()
    for name, text in (("http", "one"), ("http-2", "two"), ("http", "three")):
        comment.write_text(f"{text}\n")
        mark = step["env"]["MARK"].replace("${{ inputs.name }}", name)
        env = {**os.environ, **said, "MARK": mark}
        subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=env, check=True)
    bodies = json.loads((tmp_path / "kept.json").read_text())
    assert bodies == ["<!-- mlserve gate: http -->\nthree\n", "<!-- mlserve gate: http-2 -->\ntwo\n"]


@pytest.mark.parametrize("name", ["latency-gate.yml", "own-gate.yml"])
def test_every_script_of_a_workflow_is_one_that_the_shell_reads(request, name):
    document = yaml.safe_load((root(request) / ".github" / "workflows" / name).read_text())
    scripts = [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def examples(request):
    """Every command of the page and of the help, what stands behind `mlserve gate`."""
    page = (root(request) / "docs" / "gating.md").read_text()
    shown = get_command(app).commands["gate"].help
    return [line.partition("||")[0] for line in re.findall(r"mlserve gate ([^`\n#]*[^`\n# ])", f"{page}\n{shown}")]


def test_the_examples_name_no_flag_that_is_not_there(request, gate_flags):
    assert len(examples(request)) >= 15
    for line in examples(request):
        assert flags_of(line) <= gate_flags


def test_every_example_says_what_is_limited(request):
    """Or it compares nothing: such a command would end with 2."""
    limiting = {"--max-regression", "--limit", "--slo", "--config"}
    for line in examples(request):
        flags = flags_of(line)
        assert flags & limiting or ("--append" in flags and "--against" not in flags), line
