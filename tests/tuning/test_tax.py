"""The protocol tax: parts that add up, and a real model over every protocol."""

import numpy as np
import pytest

from mlserve.errors import UsageError
from mlserve.tuning.opening import Contender, Source
from mlserve.tuning.tax import PARTS, Asked, Floor, read_entries, tax_row
from mlserve.tuning.taxing import TaxPlan, measure_tax

SAID = {"queue": 0.0003, "compute": 0.002, "parse": 0.0001, "wait": 0.0001, "encode": 0.0002}


def asked(total_s, said_s=SAID, coding_s=0.0004, rounds=10, each=20):
    rng = np.random.default_rng(0)
    return [
        Asked(number, total_s * float(rng.uniform(0.9, 1.1)), coding_s, said_s)
        for number in range(1, rounds + 1)
        for _ in range(each)
    ]


def parts(split):
    return sum(getattr(split, part) for part in PARTS)


def test_a_header_is_read_entry_by_entry():
    header = 'queue;dur=0.300, compute;dur=2.000, parse;dur=0.100, wait;dur=0.100, encode;dur=0.200, batch;desc="1 row"'
    assert read_entries(header) == pytest.approx(SAID)
    assert read_entries("") == {}
    assert read_entries('cache;desc="hit"') == {}


def test_the_parts_add_up_to_the_total_for_mean_and_median():
    inside = asked(0.002, {}, 0.0)
    floor = Floor(mean_s=0.001, median_s=0.0009, cpu_s=0.0003)
    row = tax_row("REST JSON", asked(0.006), floor, inside)
    assert parts(row.mean) == pytest.approx(row.mean.total)
    assert parts(row.median) == pytest.approx(row.median.total)
    assert row.mean.client == pytest.approx(0.0004 + 0.0003)
    assert row.mean.network == pytest.approx(0.0007)
    assert (row.mean.queue, row.mean.wait) == pytest.approx((0.0002, 0.0001))
    assert row.mean.other == pytest.approx(row.mean.total - 0.001 - 0.0004 - 0.0026)
    assert row.tax == pytest.approx(3.0, rel=0.05)
    assert row.low < row.tax < row.high


def test_in_process_all_is_compute_and_there_is_no_tax():
    inside = asked(0.002, {}, 0.0)
    row = tax_row("in process", inside, None, inside)
    assert row.mean.compute == row.mean.total == parts(row.mean)
    assert row.tax == 1.0


def test_a_client_that_uses_more_than_all_of_the_floor_leaves_nothing_to_the_network():
    row = tax_row("gRPC", asked(0.006), Floor(mean_s=0.001, median_s=0.001, cpu_s=0.002), asked(0.002, {}, 0.0))
    assert row.mean.network == 0.0
    assert parts(row.mean) == pytest.approx(row.mean.total)


def test_a_real_model_is_taxed_over_every_protocol(tiny_onnx, tmp_path):
    rounds = []
    plan = TaxPlan(contender=Contender(str(tiny_onnx), "tiny"), batch_rows=4, duration_s=1.0)
    report = measure_tax(plan, Source(store=tmp_path), lambda *said: rounds.append(said))
    assert rounds == [(number, 10) for number in range(1, 11)]
    assert [row.way for row in report.rows] == ["in process", "gRPC", "REST binary", "REST JSON"]
    assert report.model == "tiny@1"
    for row in report.rows[1:]:
        assert row.requests >= 10
        assert row.tax > 1
        assert parts(row.mean) == pytest.approx(row.mean.total)
        for part in ("client", "parse", "compute", "encode"):
            assert 0 < getattr(row.mean, part) < row.mean.total, part


def test_a_server_that_runs_already_cannot_be_taxed(tmp_path):
    plan = TaxPlan(contender=Contender("http://127.0.0.1:1", "theirs"))
    with pytest.raises(UsageError, match=r"opens the model in process too, and http://127.0.0.1:1 is a URL"):
        measure_tax(plan, Source(store=tmp_path), lambda *_: None)
