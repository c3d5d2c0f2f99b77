"""Another server that installs by pip, serving the known model: so that "better than" is measured."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scorecard.known import MODEL, write_known

__all__ = ["PEERS", "serving_peer"]

PEERS = ("mlserver",)
"""Those that speak V2."""


@contextmanager
def serving_peer(name: str) -> Iterator[str]:
    """The URL of the peer, in the environment of its own that `benchmarks/peers/` makes, on the server's cores."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
    from environments import prepare  # type: ignore[import-not-found]  # found by the path above
    from peer_servers import serving_peer as serving  # type: ignore[import-not-found]
    from peer_servers import settings_of
    from served import choose_cores
    from subjects import describe

    environment = prepare(name)
    with tempfile.TemporaryDirectory(prefix="scorecard-peer-") as folder:
        path = write_known(Path(folder) / f"{MODEL}.onnx")
        subject = describe(str(path), Path(folder) / "store")
        (batching,) = [setting for setting in settings_of([name]) if setting.rows > 1]
        with serving(batching, environment, subject, choose_cores()[0], Path(folder)) as peer:
            yield peer.http
