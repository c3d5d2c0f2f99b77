"""How much of requests that are not complete yet one worker holds."""

__all__ = ["Receiving"]


class Receiving:
    """How many bytes of unfinished requests the connections of one worker hold together, at most `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0

    def take(self, more_bytes: int) -> bool:
        """Counts `more_bytes`, unless that is too much."""
        if self.bytes + more_bytes > self.most_bytes:
            return False
        self.bytes += more_bytes
        return True

    def release(self, fewer_bytes: int) -> None:
        self.bytes -= fewer_bytes
