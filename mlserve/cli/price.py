"""`--price`: what a machine costs an hour, with the currency as it was written."""

import math
import re

import msgspec

from mlserve.errors import UsageError

__all__ = ["Price", "parse_price"]

# What is before or behind the number is the currency.
_PRICE = re.compile(r"([^\d\s./+-]*)\s*(\d+(?:\.\d*)?|\.\d+)\s*([^\d\s./+-]*)\s*/\s*h")


class Price(msgspec.Struct, frozen=True):
    """What a machine costs an hour, and the words around it."""

    per_h: float
    before: str = ""
    behind: str = ""

    def shown(self, amount: float) -> str:
        """`$15.60`, `15.60 EUR`; small amounts with three digits."""
        digits = f"{amount:,.2f}" if amount >= 1 else f"{amount:.3g}"
        return f"{self.before}{digits}{f' {self.behind}' if self.behind else ''}"


def parse_price(text: str) -> Price:
    """`"1.20/h"`, `"$1.20/h"`, `"1.20 EUR/h"`. Raises UsageError for anything else."""
    match = _PRICE.fullmatch(text.strip())
    per_h = float(match[2]) if match is not None and not (match[1] and match[3]) else 0.0
    if match is None or not 0 < per_h < math.inf:
        raise UsageError(
            f"--price {text!r} is no price; write what one machine costs an hour, such as 1.20/h or $1.20/h"
        )
    return Price(per_h, match[1], match[3])
