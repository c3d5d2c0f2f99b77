"""What a browser may be made to send: pages of other sites reach every server that their readers' machines can reach.

A page may be given a name that then means 127.0.0.1 (DNS rebinding): the request's `host` still is that name. And a
page may send a form or a plain text anywhere without asking: the request's `origin` says where the page is from.
"""

import ipaddress
import re
from collections.abc import Collection, Sequence

from mlserve.errors import Forbidden

__all__ = ["HOST", "ORIGIN", "BrowserGuard"]

HOST, ORIGIN = b"host", b"origin"
ANY = "*"

# So many spellings of the host are remembered.
_MOST_PASSED = 256
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{1,5})?")
_HERE = ("localhost", "127.0.0.1", "[::1]")


class BrowserGuard:
    """The names that requests to one port may be for, and the sites whose pages may send any.

    A port that only this machine reaches, with no keys asked for (`open_to_all`), answers to `localhost`, `127.0.0.1`,
    `[::1]`, its own `address` and the `hosts`; every other port to any name. `origins` are sites
    (`https://shop.example`) beside the server itself. `*` among `hosts` or `origins` is all.
    """

    def __init__(
        self, address: str, *, open_to_all: bool, hosts: Collection[str] = (), origins: Collection[str] = ()
    ) -> None:
        self._hosts: frozenset[str] | None = None
        if open_to_all and ANY not in hosts and _is_loopback(address):
            own = f"[{address}]" if ":" in address else address
            self._hosts = frozenset(each.lower() for each in (*_HERE, own, *hosts))
        self._origins = frozenset(each.lower().rstrip("/") for each in origins)
        self.passed: set[tuple[bytes, bytes]] = set()
        """Fields of `host` that have been looked at, as the request had them."""

    def check(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises Forbidden for a request for another host, or from another site. `fields` have lower-case names.

        A request without `host` is no browser's.
        """
        hosts = [value for name, value in fields if name == HOST]
        if self._hosts is not None and not all(_name(each) in self._hosts for each in hosts):
            raise Forbidden(
                "the header 'host' names another server; if it is a name of this one, start it with --allowed-host NAME"
            )
        for name, value in fields:
            if name == ORIGIN and not self._may_send(value, hosts):
                raise Forbidden(
                    "a page of another site sent this; if it is meant to, start the server with --allowed-origin ORIGIN"
                )
        if len(self.passed) >= _MOST_PASSED:
            self.passed.clear()
        self.passed.update((HOST, each) for each in hosts)

    def _may_send(self, origin: bytes, hosts: Sequence[bytes]) -> bool:
        site = origin.decode("latin-1").lower()
        own = {f"{scheme}://{host.decode('latin-1').lower()}" for host in hosts for scheme in ("http", "https")}
        return site in own or site in self._origins or ANY in self._origins


def _name(host: bytes) -> str:
    """The name in a `host` field, without its port; empty for what is none."""
    found = _AUTHORITY.fullmatch(host.decode("latin-1").lower())
    return found[1].rstrip(".") if found else ""


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
