"""What a service has promised, as a report judges by it."""

import msgspec

from mlserve.units import format_duration

__all__ = ["Slo"]


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """`percentile` of all requests (0.99) are answered within `limit_s` of being due, at most the share `max_errors`
    of them fails.
    """

    percentile: float = 0.99
    limit_s: float
    max_errors: float = 0.001

    @property
    def name(self) -> str:
        """`p99`."""
        return f"p{100 * self.percentile:.10g}"

    @property
    def words(self) -> str:
        """`p99 within 50.0 ms, at most 0.1% errors`."""
        return f"{self.name} within {format_duration(self.limit_s)}, at most {100 * self.max_errors:.3g}% errors"
