"""When a model is held back, when it is tried again, and whom a death is blamed on."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.life.breaker import Breaker, culprit

BAD, GOOD = ("bad", "1"), ("good", "1")


def runs(ended=0, *, running=False):
    return {BAD: (running, ended)}


def opened(now_s=0.0):
    """A breaker that has just opened, at `now_s`."""
    breaker = Breaker(3)
    assert [breaker.died(BAD, "signal SIGFPE", now_s) for _ in range(3)] == [None, None, 5.0]
    return breaker


def test_it_opens_at_the_third_death_and_says_why():
    breaker = opened()
    assert breaker.held(1).keys() == {BAD}
    assert "signal SIGFPE" in breaker.held(1)[BAD]


def test_deaths_far_apart_are_nobodys_fault():
    breaker = Breaker(3)
    assert [breaker.died(BAD, "it hung", 301.0 * number) for number in range(10)] == [None] * 10
    assert breaker.held() == {}


def test_a_breaker_that_is_switched_off_holds_nothing():
    breaker = Breaker(0)
    assert [breaker.died(BAD, "it hung", 0.0) for _ in range(10)] == [None] * 10
    assert breaker.quiet


def test_one_worker_tries_it_again_and_good_runs_close_it():
    breaker = opened()
    assert breaker.look({7: {}, 8: {}}, 4.9) == []
    assert breaker.look({7: {}, 8: {}}, 5.0) == ["bad@1 is tried again, in worker 7 alone"]
    assert (breaker.held(7), breaker.held(8).keys()) == ({}, {BAD})
    assert breaker.look({7: runs(), 8: {}}, 6.0) == []
    assert breaker.look({7: runs(19), 8: {}}, 6.1) == []
    assert breaker.look({7: runs(20), 8: {}}, 6.2) == ["bad@1 is served by every worker again"]
    assert breaker.held(8) == {}


def test_a_trial_begins_when_the_model_is_loaded():
    breaker = opened()
    breaker.look({7: {}}, 5.0)
    assert breaker.look({7: {}}, 20.0) == []  # its worker copies it
    assert breaker.look({7: runs(running=True)}, 40.0) == []  # and loads it
    assert breaker.look({7: runs()}, 60.0) == []
    assert breaker.look({7: runs(3)}, 69.9) == []
    assert breaker.held(8).keys() == {BAD}
    assert breaker.look({7: runs(3)}, 70.1) == ["bad@1 is served by every worker again"]


def test_runs_from_before_the_trial_do_not_count():
    breaker = opened()
    breaker.look({7: runs(500)}, 5.0)
    assert breaker.look({7: runs(500)}, 5.1) == breaker.look({7: runs(519)}, 5.2) == []
    assert breaker.look({7: runs(520)}, 5.3) == ["bad@1 is served by every worker again"]


def test_a_trial_that_kills_opens_it_for_twice_as_long():
    breaker, now_s = opened(), 0.0
    for pause_s in (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0):
        now_s += pause_s
        breaker.look({7: {}}, now_s)
        assert breaker.held(7) == {}
        assert breaker.died(BAD, "signal SIGFPE", now_s) == min(2 * pause_s, 300.0)
        assert breaker.held(7).keys() == {BAD}


def test_a_trial_whose_worker_ends_of_something_else_is_made_by_another():
    breaker = opened()
    breaker.look({7: {}, 8: {}}, 5.0)
    breaker.look({8: {}}, 6.0)
    assert breaker.look({8: {}}, 6.1) == ["bad@1 is tried again, in worker 8 alone"]


def test_a_quiet_trial_ends_well_and_the_past_is_forgotten_in_the_end():
    breaker = opened()
    breaker.look({7: {}}, 5.0)
    breaker.look({7: runs()}, 5.1)
    breaker.look({7: runs()}, 15.2)
    assert breaker.held(8) == {}
    assert breaker.died(BAD, "it hung", 20.0) is None
    breaker.look({7: {}}, 20.0 + 1801.0)
    assert breaker.quiet


def test_of_several_that_ran_the_one_with_the_least_behind_it_is_blamed():
    assert culprit({BAD: (True, 0), GOOD: (True, 500)}) == BAD
    assert culprit({BAD: (False, 0), GOOD: (True, 500)}) == GOOD
    assert culprit({BAD: (False, 0)}) is None


deaths = st.lists(st.tuples(st.sampled_from(["die", "look"]), st.floats(0.0, 400.0)), max_size=60)


@given(deaths)
def test_whatever_happens_a_model_is_held_or_served_and_never_tried_by_two(steps):
    breaker, now_s = Breaker(3), 0.0
    for kind, passed_s in steps:
        now_s += passed_s
        if kind == "die":
            pause_s = breaker.died(BAD, "it hung", now_s)
            assert pause_s is None or 5.0 <= pause_s <= 300.0
            assert pause_s is None or breaker.held(1).keys() == breaker.held(2).keys() == {BAD}
        else:
            breaker.look({1: runs(), 2: {}}, now_s)
        assert len(breaker.held(1)) + len(breaker.held(2)) in (0, 1, 2)
        if breaker.held(1) != breaker.held(2):  # on trial
            assert breaker.held(1) == {}
