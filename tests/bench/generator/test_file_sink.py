import gevent

from mlserve.bench.generator.file_sink import FileSink
from mlserve.bench.generator.job import Tick
from mlserve.runs.samples import OK, Sample, read_samples

TICK = Tick(elapsed_s=1.0, sent=1, ok=1, failed=0, dropped=0, in_flight=0, latencies={})


def rows(count):
    return [Sample(number, number, None, number, 1, 0, OK, "") for number in range(count)]


def test_rows_are_on_the_disk_before_the_file_is_finished_and_after(tmp_path):
    ticks = []
    sink = FileSink(tmp_path, ticks.append)
    sink.take(rows(1000), TICK)
    assert len(read_samples(tmp_path)) == 1000
    sink.take([], TICK)
    sink.close()
    assert len(read_samples(tmp_path)) == 1000
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]
    assert ticks == [TICK, TICK]


def test_others_go_on_between_a_few_rows_and_the_next(tmp_path):
    sink = FileSink(tmp_path, lambda _: None)
    taking = gevent.spawn(sink.take, rows(5000), TICK)
    turns = 0
    while not taking.ready():
        gevent.sleep(0)
        turns += 1
    assert turns > 10
    sink.close()


def test_a_run_cut_short_while_rows_are_taken_keeps_them_all(tmp_path):
    sink = FileSink(tmp_path, lambda _: None)
    taking = gevent.spawn(sink.take, rows(5000), TICK)
    gevent.sleep(0.001)
    assert not taking.ready()
    sink.close()
    sink.close()
    taking.join()
    assert len(read_samples(tmp_path)) == 5000
