"""The tests of the scorecard that mostly wait: each passes, and its control is found out."""

import pytest
from scorecard.case import Stage
from scorecard.catalogue import UNHURRIED, find_cases

CASES = {case.id: case for case in find_cases()}


@pytest.mark.parametrize("name", UNHURRIED)
def test_it_passes_and_its_control_does_not(name, tmp_path):
    outcome = CASES[name].run(Stage(form="seconds", folder=tmp_path))
    assert outcome.passed, outcome.found
    assert outcome.control_failed, outcome.control
