"""The program itself: before any verb runs."""

import os
import subprocess
import sys

import pytest

# Sends Ctrl-C to the process at the moment it imports a certain module.
INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("INTERRUPT_AT"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(("module", "status"), [("typer", 130), ("mlserve.cli.bench", 130), ("", 0)])
def test_ctrl_c_while_the_program_is_imported_ends_it_quietly(tmp_path, module, status):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "mlserve", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPT_AT": module},
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("mlserve ") == (status == 0)
