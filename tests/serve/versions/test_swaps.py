"""Versions that come, go and swap under load: no request is lost, and every answer is that of the version it names."""

import time

import numpy as np
import pytest


def test_swapping_the_alias_and_publishing_under_load_loses_nothing_and_crosses_nothing(
    serving, scaling, steady_load, until, scale_of
):
    scaling.publish()
    scaling.promote(1)
    with (
        serving("--store", scaling.root, "--workers", 2) as server,
        steady_load(server, ["", "1", "production"]) as load,
    ):
        for turn in range(6):
            version = 2 - turn % 2
            scaling.promote(version)
            until(lambda version=version: scale_of(server) == 10 * version)
            time.sleep(0.3)
        for _ in range(2):
            version = scaling.publish()
            until(lambda version=version: scale_of(server, f"m/versions/{version}") == 10 * int(version))
            scaling.promote(version)
            until(lambda version=version: scale_of(server) == 10 * int(version))
            time.sleep(0.3)
    assert (load.lost, load.wrong) == ([], [])
    assert set(load.answers) == {"1", "2", "3", "4"}
    assert sum(load.answers.values()) > 500


def test_swapping_what_a_bare_name_means_loads_and_frees_versions_under_load(
    serving, scaling, steady_load, until, scale_of, index_of
):
    """With the policy `default` every swap loads one version and retires another."""
    scaling.publish()
    scaling.promote(1)
    with serving("--store", scaling.root, "m") as server, steady_load(server, [""]) as load:
        for turn in range(4):
            version = 2 - turn % 2
            scaling.promote(version)
            until(lambda version=version: scale_of(server) == 10 * version)
            until(lambda version=version: index_of(server) == {("m", str(version)): ("READY", "")})
    assert (load.lost, load.wrong) == ([], [])
    assert set(load.answers) == {"1", "2"}


def test_the_checker_finds_a_wrong_answer_and_a_lost_one(serving_settings, scaling, steady_load, fault_of):
    """Version 1 in the place of version 2: as if a swap had crossed answers."""
    from mlserve.serve.settings import ModelSource

    sources = tuple(ModelSource("m", version, str(scaling.root / "m" / "1")) for version in ("1", "2"))
    running = serving_settings(models=sources, defaults={"m": "1"})
    with running as server, steady_load(server, ["1", "2", "3"]) as load:
        time.sleep(0.5)
    assert load.wrong
    assert all("is not what version 2 makes of" in fault for fault in load.wrong)
    assert load.lost  # version 3 is nowhere
    right = np.float32([10, -10])
    assert [fault_of("", 1, "1", right), fault_of("1", 1, "1", right)] == ["", ""]
    assert fault_of("2", 1, "1", right) == "version 2 was asked, 1 answered"


# One command


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_promoting_and_rolling_back_take_effect_in_a_running_server(
    serving, scaling, mlserve, everywhere, scale_of, workers
):
    scaling.publish()
    scaling.promote(1)
    with serving("--store", scaling.root, "--workers", workers) as server:
        assert scale_of(server) == 10
        scaling.promote(2)
        everywhere(lambda: scale_of(server), 20)
        assert mlserve("models", "rollback", "m", "--store", scaling.root).returncode == 0
        everywhere(lambda: scale_of(server), 10)
        assert [scale_of(server, f"m/versions/{which}") for which in ("1", "2", "production")] == [10, 20, 10]
