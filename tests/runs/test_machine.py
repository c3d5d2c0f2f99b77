import pytest

from mlserve.runs.machine import package_version, read_governor, read_machine, usable_cores


@pytest.fixture
def make_sys(tmp_path):
    """A folder that says of the machine's devices what `files` says: path -> content."""

    def make(**files):
        for name, content in files.items():
            path = tmp_path / "devices/system" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return make


def test_this_machine_has_a_processor_cores_memory_and_versions():
    machine = read_machine()
    assert machine.cpu
    assert machine.cores == usable_cores() > 0
    assert machine.memory_bytes > 1 << 28
    assert machine.packages["mlserve"]
    assert package_version("no-such-package") == ""


@pytest.mark.parametrize(
    ("files", "governor"),
    [
        ({}, ""),
        ({"cpu__cpu0__cpufreq__scaling_governor": "performance"}, "performance"),
        (
            {
                "cpu__cpu0__cpufreq__scaling_governor": "powersave",
                "cpu__cpu1__cpufreq__scaling_governor": "performance",
            },
            "performance, powersave",
        ),
    ],
)
def test_the_governor_is_what_the_cores_say(make_sys, files, governor):
    assert read_governor(sys=make_sys(**files)) == governor


def test_only_the_cores_asked_for_count(make_sys):
    sys = make_sys(cpu__cpu0__cpufreq__scaling_governor="powersave", cpu__cpu12__cpufreq__scaling_governor="schedutil")
    assert read_governor([12], sys) == "schedutil"
    assert read_governor([3], sys) == ""


@pytest.mark.parametrize(
    ("files", "turbo"),
    [
        ({}, None),
        ({"cpu__intel_pstate__no_turbo": "0"}, True),
        ({"cpu__intel_pstate__no_turbo": "1"}, False),
        ({"cpu__cpufreq__boost": "1"}, True),
        ({"cpu__cpufreq__boost": "0"}, False),
    ],
)
def test_turbo_is_told_by_either_driver(make_sys, files, turbo):
    assert read_machine(make_sys(**files)).turbo is turbo


def test_the_clocksource_is_read(make_sys):
    sys = make_sys(clocksource__clocksource0__current_clocksource="kvm-clock")
    assert read_machine(sys).clocksource == "kvm-clock"
