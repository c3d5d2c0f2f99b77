"""The garbage collector does not walk, while requests wait, what a worker has had since its start."""

SPY = """
import gc, os, threading, time

def tell():
    path = f"{os.environ['SPIED']}/{os.getpid()}"
    while True:
        with open(path + ".partial", "w") as file:
            file.write(str(gc.get_freeze_count()))
        os.replace(path + ".partial", path)
        time.sleep(0.05)

threading.Thread(target=tell, daemon=True).start()
"""


def test_what_is_there_at_the_start_is_set_aside_and_stays_so_when_a_version_leaves(
    serving, scaling_of, scale_of, tmp_path, until
):
    (tmp_path / "sitecustomize.py").write_text(SPY)
    model = scaling_of(tmp_path / "store", "named")
    model.publish()
    model.promote(1)
    chosen = ("--store", model.root, "--model-control", "explicit", "--workers", 1, "named")
    with serving(*chosen, PYTHONPATH=str(tmp_path), SPIED=str(tmp_path)) as server:
        told = tmp_path / str(server.workers[0])
        until(lambda: int(told.read_text()) > 10_000)
        assert scale_of(server, "named") == 10
        before = int(told.read_text())
        server.request("POST", "/v2/repository/models/named/unload", b"{}")
        until(lambda: int(told.read_text()) < before)  # what the version was is freed
        assert scale_of(server, "named") == 404
        assert int(told.read_text()) > before - 5_000
