from mlserve.bench.watching.cores import CoreTimes, parse_cores, read_cores

STAT = """cpu  300 20 100 5000 10 5 40 7 3 0
cpu0 100 10 50 2000 5 2 20 3 3 0
cpu2 200 10 50 3000 5 3 20 4 0 0
intr 123 0 0
ctxt 99
"""


def test_each_core_has_its_number_and_its_seconds():
    assert parse_cores(STAT, 100) == {
        0: CoreTimes(busy_s=1.6, steal_s=0.03, total_s=21.9),
        2: CoreTimes(busy_s=2.6, steal_s=0.04, total_s=32.92),
    }


def test_a_folder_takes_the_place_of_the_kernel(tmp_path):
    assert read_cores(tmp_path) == {}
    (tmp_path / "stat").write_text(STAT)
    assert set(read_cores(tmp_path)) == {0, 2}
