"""How many connections a process can keep, by the files it may open."""

import logging
import sys

import msgspec

from mlserve.serve.settings import Limits

__all__ = ["affordable"]

# What a worker opens beside connections: its models, logs, the store, the pages it reads.
_OWN_FILES = 64
# One of HTTP has one; one of gRPC has three where a guard stands before it.
_FILES_A_PAIR = 4

_log = logging.getLogger("mlserve.serve")


def affordable(limits: Limits, doors: int = 0) -> Limits:
    """`limits` with no more connections than this process can open files for, after it has asked for all it may get.

    It may have to open each of `doors` twice.
    """
    if sys.platform == "win32":
        return limits
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits
    most = max(1, (hard - _OWN_FILES - 2 * doors) // _FILES_A_PAIR)
    if most >= limits.max_connections:
        return limits
    _log.warning("of %d connections, %d are let in: %d files may be open", limits.max_connections, most, hard)
    return msgspec.structs.replace(limits, max_connections=most)
