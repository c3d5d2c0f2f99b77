import numpy as np
import pytest

from mlserve.bench.watching.energy import EnergyReading, energy_spent_j, read_energy


def make_zone(sys, zone, name, energy_uj):
    folder = sys / "class/powercap" / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    if energy_uj is not None:
        (folder / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_read_and_what_is_part_of_them_is_not(tmp_path):
    make_zone(tmp_path, "intel-rapl:0", "package-0", 123)
    make_zone(tmp_path, "intel-rapl:1", "package-1", 456)
    make_zone(tmp_path, "intel-rapl:0:0", "core", 100)
    make_zone(tmp_path, "intel-rapl:2", "psys", 999)
    assert read_energy(tmp_path) == {
        "intel-rapl:0": EnergyReading(123, 1_000_000),
        "intel-rapl:1": EnergyReading(456, 1_000_000),
    }


def test_a_counter_that_may_not_be_read_is_none(tmp_path):
    make_zone(tmp_path, "intel-rapl:0", "package-0", None)
    assert read_energy(tmp_path) == {}
    assert read_energy(tmp_path / "nothing") == {}


def test_a_counter_that_began_again_goes_on():
    counts = [900_000, 990_000, 40_000, 50_000]
    spent = energy_spent_j([{"a": EnergyReading(count, 1_000_000)} for count in counts])
    assert spent == pytest.approx(np.array([0, 0.09, 0.14, 0.15]))


def test_packages_add_up_and_a_missing_one_makes_it_unknown():
    two = [{"a": EnergyReading(n * 1000, 10**6), "b": EnergyReading(n * 2000, 10**6)} for n in range(3)]
    assert energy_spent_j(two) == pytest.approx(np.array([0, 0.003, 0.006]))
    assert energy_spent_j([*two, {"a": EnergyReading(3000, 10**6)}]) is None
    assert energy_spent_j([{}, {}]) is None
    assert energy_spent_j([]) is None
