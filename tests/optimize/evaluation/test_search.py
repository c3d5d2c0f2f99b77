"""How few layers are put back, on curves that behave and curves that do not."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.optimize.evaluation.search import Trial, restore_accuracy


class Curve:
    """Losses by how many nodes are kept; one more than there are losses would leave nothing to quantize."""

    def __init__(self, losses, limit=0.5):
        self.losses, self.limit, self.made = losses, limit, []

    @property
    def ranking(self):
        return [f"node{number}" for number in range(len(self.losses))]

    def trial(self, count):
        loss = self.losses[count]
        return Trial(tuple(self.ranking[:count]), loss <= self.limit, loss, loss, 100 + count)

    def make(self, kept):
        assert list(kept) == self.ranking[: len(kept)]
        self.made.append(len(kept))
        return self.trial(len(kept))

    def search(self, max_trials=50):
        return restore_accuracy(self.trial(0), self.ranking, self.make, max_trials=max_trials)


falling = st.lists(st.floats(0, 1), min_size=1, max_size=100).map(lambda losses: sorted([1.0, *losses], reverse=True))
anyhow = st.lists(st.floats(0, 1), min_size=1, max_size=100).map(lambda losses: [1.0, *losses])


@given(falling)
def test_the_fewest_nodes_that_hold_are_found(losses):
    curve = Curve(losses)
    found = curve.search()
    enough = [count for count, loss in enumerate(losses) if loss <= 0.5]
    assert (len(found.winner.kept) if found.winner else None) == (enough[0] if enough else None)
    assert found.monotone
    assert not found.exhausted


@given(anyhow, st.integers(0, 20))
def test_whatever_the_curve_the_winner_was_measured_to_hold(losses, max_trials):
    curve = Curve(losses)
    found = curve.search(max_trials)
    assert len(curve.made) <= max_trials
    assert len(curve.made) == len(set(curve.made))
    assert sorted([0, *curve.made]) == [len(trial.kept) for trial in found.trials]
    holding = [trial for trial in found.trials if trial.holds]
    assert found.winner == (holding[0] if holding else None)
    assert all(trial == curve.trial(len(trial.kept)) for trial in found.trials)


@given(falling)
def test_few_trials_suffice(losses):
    curve = Curve(losses)
    curve.search()
    assert len(curve.made) <= 2 * len(losses).bit_length() + 1


@given(falling)
def test_with_few_trials_some_variant_that_holds_is_found_if_there_is_one(losses):
    found = Curve(losses).search(max_trials=4)
    assert (found.winner is None) == (losses[-1] > 0.5)


def test_trials_that_ran_out_are_told():
    losses = [1.0] * 60 + [0.1] * 15
    assert Curve(losses).search(max_trials=4).exhausted
    assert not Curve(losses).search(max_trials=30).exhausted
    assert len(Curve(losses).search(max_trials=30).winner.kept) == 60


def test_a_curve_that_rises_is_told():
    losses = [0.9, 1.0, 0.2, 0.1, 0.0]
    assert not Curve(losses).search().monotone


def test_a_variant_with_nothing_left_is_no_answer():
    curve = Curve([1.0, 0.9, 0.2, 0.1, 0.0])
    made = []

    def make(kept):
        made.append(len(kept))
        return curve.make(kept) if len(kept) < 3 else None

    found = restore_accuracy(curve.trial(0), curve.ranking, make)
    assert len(found.winner.kept) == 2
    nothing_holds = restore_accuracy(curve.trial(0), curve.ranking, lambda _: None)
    assert nothing_holds.winner is None
    assert [trial.kept for trial in nothing_holds.trials] == [()]


def test_a_model_of_one_layer_has_nothing_to_search():
    only = Curve([1.0])
    assert only.search().winner is None
    assert only.made == []
