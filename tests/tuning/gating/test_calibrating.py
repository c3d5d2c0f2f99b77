"""What gates of a server against itself showed is used by the gates after them, however their runs are made."""

import pytest

from mlserve.report.gating.calibration import calibrate, read_calibration, write_calibration
from mlserve.tuning.gating.calibrating import calibrated_of, gate_against_itself
from mlserve.tuning.gating.live import run_gate

A_DAY_S = 86_400.0


def run(asked, folder, servers, told, **said):
    return run_gate(asked, folder, servers.opens, told, A_DAY_S, runs=servers, **said)


@pytest.mark.parametrize(
    "said",
    [{}, {"slot_s": 0.2}, {"slot_s": 0.2, "keep_servers": True}],
    ids=["one after the other", "in turns", "kept servers in turns"],
)
def test_a_gate_like_those_of_the_calibration_uses_it(tmp_path, two_servers, live_gate, told, made_runs, said):
    servers, asked = two_servers(0.004, 0.004, noise=0.001), live_gate(**said)
    gates = gate_against_itself(asked, 3, tmp_path / "aa", lambda gate, folder: run(gate, folder, servers, told))
    file = tmp_path / "calibration.json"
    write_calibration(file, calibrate(gates, made_runs.MACHINE, calibrated_of(asked, gates)))
    calibration = read_calibration(file)
    result = run(asked, tmp_path / "gate", servers, told, calibration=calibration)
    assert result.false_alarms == calibration.false_alarms
    assert result.about == "servers"
    assert not [note for note in result.notes if "calibration" in note]


def test_a_gate_of_longer_runs_does_not(tmp_path, two_servers, live_gate, told, made_runs):
    """The negative control of the one above: runs one after the other are shorter than those that take turns."""
    servers = two_servers(0.004, 0.004, noise=0.001)
    gates = gate_against_itself(live_gate(), 2, tmp_path / "aa", lambda gate, folder: run(gate, folder, servers, told))
    calibration = calibrate(gates, made_runs.MACHINE, calibrated_of(live_gate(), gates))
    result = run(live_gate(slot_s=0.2), tmp_path / "gate", servers, told, calibration=calibration)
    assert result.false_alarms is None
    assert any("was not used" in note for note in result.notes)


def test_no_gate_shows_nothing(live_gate):
    assert calibrated_of(live_gate(), []) is None
