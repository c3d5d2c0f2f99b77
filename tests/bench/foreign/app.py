"""A model server as people write it by hand: Starlette and uvicorn, plain JSON, one path, and an API key.

`POST /predict` takes `{"features": [[a, b], ...]}` and answers `{"result": [{"sum": a + b, "larger": ...}, ...]}`.
"""

import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def predict(request):
    if request.headers.get("x-api-key") != "sEcReT":
        return JSONResponse({"detail": "no key"}, 401)
    rows = (await request.json())["features"]
    return JSONResponse({"result": [{"sum": a + b, "larger": int(b > a)} for a, b in rows]})


def main():
    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()
