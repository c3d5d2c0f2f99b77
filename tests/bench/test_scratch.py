"""What a killed process leaves in the folder for temporary files is gone with the next one's start."""

import subprocess
import sys

from mlserve.bench.scratch import scratch_folder

HOLD = """
import sys
from mlserve.bench.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "job").write_text("job")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_next_folder_removes_what_a_killed_process_left_and_nothing_of_one_that_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mlserve-bench-older").mkdir()
    with scratch_folder() as alive:
        code = HOLD.replace("import sys\n", f"import sys, tempfile\ntempfile.tempdir = {str(tmp_path)!r}\n", 1)
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            abandoned = tmp_path / process.stdout.readline().strip()
            with scratch_folder():
                assert abandoned.is_dir()  # the negative control: its process lives
            process.kill()
            process.wait(30)
            assert (abandoned / "job").is_file()
            with scratch_folder() as other:
                assert not abandoned.exists()
                assert {alive, other} <= set(tmp_path.iterdir())
    assert [one.name for one in tmp_path.iterdir()] == ["mlserve-bench-older"]
