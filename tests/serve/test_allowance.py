"""How much a key may ask: the bucket against one that is kept by adding, the day's quota, and counting together."""

import multiprocessing
import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import TooManyRequests
from mlserve.serve.allowance import Allowance, Ledger, Used, spend

DAY_S = 86_400


@given(
    rate=st.integers(1, 1000),
    burst=st.integers(1, 50),
    gaps_ms=st.lists(st.integers(0, 3000), min_size=1, max_size=200),
)
def test_the_bucket_lets_through_what_one_that_counts_tokens_does(rate, burst, gaps_ms):
    used, tokens, now_s = Used(), Fraction(burst), Fraction(1000)
    for gap_ms in gaps_ms:
        gap_s = Fraction(gap_ms, 1000)
        now_s += gap_s
        tokens = min(Fraction(burst), tokens + gap_s * rate)
        used, wait_s = spend(Allowance(rate, burst), used, float(now_s), 0.0)
        if abs(tokens - 1) < Fraction(1, 10_000):  # rounding may decide either way
            tokens -= 0 if wait_s else 1
        elif tokens >= 1:
            assert wait_s == 0.0
            tokens -= 1
        else:
            assert wait_s == pytest.approx(float((1 - tokens) / rate), abs=1e-6)


@given(st.integers(1, 20), st.lists(st.integers(0, 3 * DAY_S), max_size=100).map(sorted))
def test_a_quota_is_for_one_day_of_utc(quota, dates_s):
    used, on_day = Used(), {}
    for date_s in dates_s:
        used, wait_s = spend(Allowance(quota_per_day=quota), used, 0.0, date_s)
        day = date_s // DAY_S
        if on_day.get(day, 0) < quota:
            assert wait_s == 0.0
            on_day[day] = on_day.get(day, 0) + 1
        else:
            assert wait_s == (day + 1) * DAY_S - date_s


def test_what_is_refused_uses_nothing():
    allowance = Allowance(1.0, 2, 3)
    used = Used()
    for _ in range(2):
        used, wait_s = spend(allowance, used, 10.0, 0.0)
        assert wait_s == 0.0
    for _ in range(5):
        after, wait_s = spend(allowance, used, 10.0, 0.0)
        assert (after, wait_s) == (used, 1.0)
    used, _ = spend(allowance, used, 11.0, 0.0)
    refused, wait_s = spend(allowance, used, 100.0, 0.0)  # the rate would let it through, the quota does not
    assert (refused, wait_s) == (used, DAY_S)


def test_the_message_says_what_is_used_up():
    now = [0.0]
    ledger = Ledger(now=lambda: now[0], date=lambda: 100.0)
    ledger.charge(b"a" * 16, Allowance(2.0, 1, 2))
    with pytest.raises(TooManyRequests, match="may ask 2 times a second; ask again in 500 ms") as refused:
        ledger.charge(b"a" * 16, Allowance(2.0, 1, 2))
    assert refused.value.retry_after_s == 0.5
    now[0] = 1.0
    ledger.charge(b"a" * 16, Allowance(2.0, 1, 2))
    now[0] = 2.0
    with pytest.raises(TooManyRequests, match="used up its 2 requests of today") as refused:
        ledger.charge(b"a" * 16, Allowance(2.0, 1, 2))
    assert refused.value.retry_after_s == DAY_S - 100.0


def asked(ledger, who, allowance, times):
    """How many of so many requests were let through."""
    passed = 0
    for _ in range(times):
        try:
            ledger.charge(who, allowance)
            passed += 1
        except TooManyRequests:
            pass
    return passed


def _ask_in_a_process(path, answers):
    answers.put(asked(Ledger(path), b"k" * 16, Allowance(quota_per_day=1500), 700))


def test_processes_and_threads_count_together_and_exactly(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_ask_in_a_process, args=(tmp_path / "used", answers)) for _ in range(2)]
    for process in processes:
        process.start()
    ledger, found = Ledger(tmp_path / "used"), []
    allowance = Allowance(quota_per_day=1500)
    threads = [
        threading.Thread(target=lambda: found.append(asked(ledger, b"k" * 16, allowance, 400))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for each in (*threads, *processes):
        each.join()
    # Where a process got no time for long while it counted, others may have gone on without it: never fewer pass.
    passed = sum(found) + sum(answers.get() for _ in processes)
    assert 1500 <= passed <= 1530
    apart = sum(asked(Ledger(), b"k" * 16, allowance, 700) for _ in range(3))  # the negative control
    assert apart == 2100


def test_keys_have_cells_of_their_own_and_keep_them(tmp_path):
    ledger, other = Ledger(tmp_path / "used"), Ledger(tmp_path / "used")
    names = [bytes([number]) * 4 + bytes(8) + number.to_bytes(4, "big") for number in range(1, 60)]
    clashing = [b"same" + bytes(8) + number.to_bytes(4, "big") for number in range(1, 60)]
    for name in (*names, *clashing):
        assert asked(ledger, name, Allowance(quota_per_day=3), 2) == 2
    for name in (*names, *clashing):
        assert asked(other, name, Allowance(quota_per_day=3), 5) == 1
    assert (tmp_path / "used").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_had_is_done_without(tmp_path, caplog):
    ledger = Ledger(tmp_path / "absent" / "used")
    assert asked(ledger, b"k" * 16, Allowance(quota_per_day=3), 5) == 3
    assert "each worker counts by itself" in caplog.text


def test_a_worker_that_was_stopped_while_it_counted_holds_nobody_up(tmp_path):
    import fcntl

    ledger = Ledger(tmp_path / "used")
    assert asked(ledger, b"k" * 16, Allowance(quota_per_day=3), 1) == 1
    with (tmp_path / "used").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert asked(ledger, b"k" * 16, Allowance(quota_per_day=3), 5) == 2


def test_a_worker_that_was_stopped_while_it_counted_does_not_hold_up_the_first_use_of_another(tmp_path):
    import fcntl

    assert asked(Ledger(tmp_path / "used"), b"k" * 16, Allowance(quota_per_day=3), 1) == 1
    found = []
    with (tmp_path / "used").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = Ledger(tmp_path / "used")
        thread = threading.Thread(
            target=lambda: found.append(asked(other, b"k" * 16, Allowance(quota_per_day=3), 5)), daemon=True
        )
        thread.start()
        thread.join(10)
        assert found == [2]


def test_of_many_that_come_first_together_all_count_in_one_file(tmp_path):
    ledgers = [Ledger(tmp_path / "used") for _ in range(8)]
    together, found = threading.Barrier(len(ledgers)), []

    def ask(ledger):
        together.wait()
        found.append(asked(ledger, b"k" * 16, Allowance(quota_per_day=100), 20))

    threads = [threading.Thread(target=ask, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 100 <= sum(found) <= 110
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
