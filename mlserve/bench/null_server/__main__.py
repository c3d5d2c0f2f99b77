"""The null server's process.

    python -m mlserve.bench.null_server http|grpc PATH FILE     (started by open_null_server; not for people)

It writes the port it listens on as one line, and answers every request for PATH with what FILE holds.
"""

import sys
from pathlib import Path


def _main(transport: str, path: str, answer: bytes) -> None:
    # Only what is used is imported, so that the port is there after a tenth of a second.
    if transport == "grpc":
        from mlserve.bench.null_server.grpc import serve_grpc

        serve_grpc(path, answer, _say)
    else:
        from mlserve.bench.null_server.http import serve_http

        serve_http(answer, _say)


def _say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
