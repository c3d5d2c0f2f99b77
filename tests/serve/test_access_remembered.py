"""The credentials that are remembered, so that each is looked at once: few bytes of them, whatever clients send."""

import tracemalloc

import pytest

from mlserve.errors import Forbidden, TooManyRequests, Unauthenticated
from mlserve.serve.access import Access, Grant
from mlserve.serve.allowance import Allowance
from mlserve.serve.keys import new_key


class CountingTokens:
    """Trusts every token, and counts what it is asked."""

    asked = 0

    def verify(self, _):
        self.asked += 1
        return Grant("t", frozenset(["infer"]))


@pytest.mark.parametrize("kind", ["good", "expired", "limited"])
def test_the_spellings_of_a_credential_are_not_kept(kind):
    until = "2001-01-01T00:00:00+00:00" if kind == "expired" else ""
    made = new_key("k", ["infer"], until, Allowance(quota_per_day=1) if kind == "limited" else None)
    access, refused = Access([made.key]), 0
    tracemalloc.start()
    try:
        for spaces in range(200):
            try:
                access.check("infer", b"Bearer " + b" " * (60_000 + spaces) + made.secret.encode())
            except (Unauthenticated, TooManyRequests):
                refused += 1
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused == {"good": 0, "expired": 200, "limited": 199}[kind]
    assert kept_bytes < 500_000


def test_a_token_is_verified_once_and_one_that_is_too_long_to_keep_each_time():
    tokens = CountingTokens()
    access = Access([], tokens)
    for credential in (b"Bearer a.b.c", b"bearer a.b.c", b"a.b.c"):
        tokens.asked = 0
        for _ in range(3):
            access.check("infer", credential)
        assert tokens.asked == 1
    for credential in (b"Bearer a.b." + b"c" * 9000, b"Bearer  a.b.c"):
        tokens.asked = 0
        for _ in range(3):
            access.check("infer", credential)
        assert tokens.asked == 3


@pytest.mark.parametrize("ask", [Access.check, Access.check_stream])
def test_what_a_key_may_not_ask_for_counts_as_well(ask):
    made = new_key("k", ["infer"], "", Allowance(quota_per_day=3))
    access, told = Access([made.key]), []
    for _ in range(5):
        with pytest.raises((Forbidden, TooManyRequests)) as refused:
            ask(access, "admin", made.secret.encode())
        told.append(refused.type)
    assert told == [Forbidden] * 3 + [TooManyRequests] * 2
    with pytest.raises(TooManyRequests):
        access.check("infer", made.secret.encode())
