"""Clients that wait for one answer each, in a thread of their own: what they were told, and when."""

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
from scorecard.grpc_way import INFER, write_message
from scorecard.judging import Question
from scorecard.known import MODEL, payload
from scorecard.server import Server

__all__ = ["Told", "all_at_once", "ask_grpc", "ask_http", "body_of", "executed"]

_PATIENCE_S = 60.0


class Told(NamedTuple):
    """How one request ended: HTTP's status or gRPC's code by name, after `took_s` since it was sent."""

    status: str
    took_s: float
    retry_after: str = ""


def body_of(number: int, parameters: Mapping[str, int] | None = None) -> str:
    """A V2 request of one row in JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": payload(number)}
    return json.dumps({"inputs": [tensor]} | ({"parameters": parameters} if parameters else {}))


def ask_http(
    server: Server,
    number: int,
    *,
    parameters: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Told:
    """Asks over a connection of its own."""
    connection = http.client.HTTPConnection(server.endpoints.http, timeout=_PATIENCE_S)
    try:
        connection.connect()
        sent_s = time.perf_counter()
        connection.request("POST", f"/v2/models/{MODEL}/infer", body_of(number, parameters), dict(headers or {}))
        reply = connection.getresponse()
        reply.read()
        return Told(str(reply.status), time.perf_counter() - sent_s, reply.getheader("retry-after", ""))
    finally:
        connection.close()


def ask_grpc(channel: grpc.Channel, number: int, timeout_s: float | None = None) -> Told:
    """Asks, with a deadline where there is a `timeout_s`."""
    infer = channel.unary_unary(INFER)
    sent_s = time.perf_counter()
    try:
        infer(write_message(Question(number), MODEL), timeout=timeout_s or _PATIENCE_S)
    except grpc.RpcError as error:
        return Told(error.code().name, time.perf_counter() - sent_s)
    return Told("OK", time.perf_counter() - sent_s)


def all_at_once(asks: Sequence[Callable[[], Told]]) -> list[Told]:
    """Each in a thread of its own; what became of them, in their order."""
    with ThreadPoolExecutor(len(asks)) as threads:
        return [each.result() for each in [threads.submit(ask) for ask in asks]]


def executed(server: Server) -> int:
    """How many rows of the known model have been run, answered or not."""
    return round(server.counted("mlserve_rows_total", model=MODEL))
