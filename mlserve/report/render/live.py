"""A page that shows itself anew whenever its file does: a server for one browser on this machine, nothing else.

The report stands in a frame, untouched. Around it is a page of our own, which is told when there is a newer report,
loads it unseen, and shows it where the reader was: at the same place, in the same theme, with the same parts unfolded.

**Law:** it listens on 127.0.0.1 only, answers only who asks for this very address (so that no other site's name can be
pointed at it), and gives out the report and that page, no other file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Condition, Thread
from typing import Any

__all__ = ["LivePage", "live_page"]

_HOST = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# A connection that says nothing for long is cut by some; and one that nobody reads is found by writing to it.
_SIGN_OF_LIFE_S = 10.0


class LivePage:
    """The newest page, and who waits for a newer one."""

    def __init__(self, page: bytes) -> None:
        self._changed = Condition()
        self._page, self._number, self._closed = page, 1, False
        self._read = self._readers = 0
        self.address = ""

    def newest(self) -> tuple[bytes, int]:
        """The newest page, and its number."""
        with self._changed:
            return self._page, self._number

    def was_read(self, number: int) -> None:
        """A browser has the whole page of this number."""
        with self._changed:
            self._read = number
            self._changed.notify_all()

    def show(self, page: bytes) -> None:
        """Takes the place of the page, in every browser that has it open."""
        with self._changed:
            self._page, self._number = page, self._number + 1
            self._changed.notify_all()

    def wait_read(self, within_s: float) -> None:
        """Returns when the newest page was read, or nobody waits for it; after `within_s` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._read == self._number or not self._readers, within_s)

    def close(self) -> None:
        """Lets everyone who waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def numbers(self) -> Iterator[int | None]:
        """The number of the newest page, now and whenever there is a newer one; None when there was none for long."""
        told = 0
        with self._changed:
            self._readers += 1
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._number > told, _SIGN_OF_LIFE_S)  # noqa: B023  # called here only
                    if self._closed:
                        return
                    newest = self._number if self._number > told else None
                told = newest or told
                yield newest
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()


@contextmanager
def live_page(page: bytes) -> Iterator[LivePage]:
    """Serves `page` on a free port until the block ends; `address` is what a browser opens."""
    live = LivePage(page)
    server = _Server((_HOST, 0), _Handler)
    server.live = live
    live.address = f"http://{_HOST}:{server.server_port}/"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield live
    finally:
        live.close()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """Knows the page that its handlers give out."""

    live: LivePage


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The report, the page around it, or the news of a newer report."""
        live = self.server.live
        if self.headers.get("Host", "") != live.address.split("/")[2]:
            self.send_error(HTTPStatus.FORBIDDEN, "this is not the address of the report")
            return
        match self.path:
            case "/":
                self._answer(_frame())
            case "/report":
                page, number = live.newest()
                self._answer(page)
                live.was_read(number)
            case "/changes":
                self._stream(live)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND, "there is only the report")

    def _answer(self, page: bytes) -> None:
        self._begin("text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _stream(self, live: LivePage) -> None:
        self._begin("text/event-stream")
        self.end_headers()
        try:
            for number in live.numbers():
                self.wfile.write(b": nothing new\n\n" if number is None else b"data: %d\n\n" % number)
        except ConnectionError:
            # The browser has closed the page.
            return

    def _begin(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the name http.server has for it
        """Nothing: the terminal belongs to the command."""


@cache
def _frame() -> bytes:
    return (files("mlserve.report.render") / "templates" / "live.html").read_bytes()
