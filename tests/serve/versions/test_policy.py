"""Which versions are served and what words mean: tables, and the laws of `settle` for any history of changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.serve.versions.policy import Choice, Known, Published, Wanted, Words, check_policy, kept, settle, want


def known(*versions, **aliases):
    return Known({version: Published(f"/store/m/{version}") for version in versions}, aliases)


THREE = known("1", "2", "3", production="2", candidate="3")


@pytest.mark.parametrize(
    ("policy", "there", "versions", "default"),
    [
        ("default", THREE, {"2"}, "2"),
        ("default", known("1", "2"), {"2"}, "2"),
        ("default", known("9", "10"), {"10"}, "10"),
        ("default", known(), set(), ""),
        ("all", THREE, {"1", "2", "3"}, "2"),
        ("all", known("1", "2"), {"1", "2"}, "2"),
        ("latest:1", known("1", "2", "3"), {"3"}, "3"),
        ("latest:1", THREE, {"2", "3"}, "2"),
        ("latest:2", known("8", "9", "10"), {"9", "10"}, "10"),
        ("latest:7", known("1"), {"1"}, "1"),
        ("3", THREE, {"3"}, "3"),
        ("candidate", THREE, {"3"}, "3"),
        ("1,production", THREE, {"1", "2"}, "2"),
        ("1,candidate", THREE, {"1", "3"}, "3"),
        ("4", THREE, set(), ""),
        ("nobody", THREE, set(), ""),
    ],
)
def test_a_policy_says_which_versions_are_served_and_which_a_bare_name_means(policy, there, versions, default):
    wanted = want(there, Choice(policy))
    assert (wanted.versions, wanted.default) == (versions, default)


def test_aliases_come_with_the_versions_they_mean():
    assert want(THREE, Choice("all")).aliases == {"production": "2", "candidate": "3"}
    assert want(THREE, Choice("3")).aliases == {"candidate": "3"}
    assert want(THREE, Choice("1")).aliases == {}


def test_a_version_that_clients_unloaded_is_wanted_by_no_policy():
    wanted = want(THREE, Choice("all", without=("2",)))
    assert (wanted.versions, wanted.default, wanted.aliases) == ({"1", "3"}, "3", {"candidate": "3"})
    assert want(THREE, Choice("default", without=("2",))).versions == set()


def test_a_default_that_clients_chose_is_served_beside_the_rest():
    wanted = want(THREE, Choice("default", default="1"))
    assert (wanted.versions, wanted.default) == ({"1", "2"}, "1")


@pytest.mark.parametrize("policy", ["default", "all", "latest:2", "3", "3,production", "latest:1,candidate"])
def test_a_policy_is_what_its_words_are(policy):
    assert check_policy(policy) == policy


@pytest.mark.parametrize("policy", ["", "latest:0", "latest:", "0", "-1", "3,", "a b", "../x", "latest:99999", "3;4"])
def test_what_is_no_policy_is_told(policy):
    with pytest.raises(UsageError, match="does not say which versions; use default, all, latest:N"):
        check_policy(policy)


# What words mean while versions come and go.


def test_an_alias_moves_when_its_version_is_loaded_and_not_before():
    before = Words({"production": "1"}, "1")
    wanted = want(known("1", "2", production="2"), Choice("default"))
    waiting = settle(wanted, {"1"}, before)
    assert (waiting, kept(wanted, {"1"}, waiting)) == (before, {"1"})
    moved = settle(wanted, {"1", "2"}, waiting)
    assert (moved, kept(wanted, {"1", "2"}, moved)) == (Words({"production": "2"}, "2"), {"2"})


def test_the_newest_that_loads_answers_where_nothing_was_promoted():
    wanted = want(known("1", "2", "3"), Choice("all"))
    assert settle(wanted, {"1", "2"}, Words()).default == "2"


def test_no_version_takes_the_place_of_a_promoted_one_that_does_not_load():
    wanted = want(known("1", "2", production="2"), Choice("all"))
    assert settle(wanted, {"1"}, Words()) == Words()


def test_the_latest_versions_stay_while_a_newer_one_is_not_loaded():
    wanted = want(known("1", "2", "3"), Choice("latest:2"))
    words = settle(wanted, {"1", "2"}, Words({}, "2"))
    assert kept(wanted, {"1", "2"}, words) == {"1", "2"}
    assert kept(wanted, {"1", "2", "3"}, settle(wanted, {"1", "2", "3"}, words)) == {"2", "3"}


def test_a_version_that_left_the_store_goes_on_answering_for_its_name_alone():
    gone = want(known(production="2"), Choice("default"))
    words = settle(gone, {"2"}, Words({"production": "2"}, "2"))
    assert (words.default, kept(gone, {"2"}, words)) == ("2", {"2"})


def test_nothing_is_kept_of_a_name_that_nobody_asks_for():
    assert settle(None, {"1"}, Words({"production": "1"}, "1")) == Words()
    assert kept(None, {"1"}, Words()) == set()


versions = st.sampled_from("12345")
stores = st.builds(
    lambda there, aliases: Known({each: Published("") for each in there}, aliases),
    st.sets(versions),
    st.dictionaries(st.sampled_from(["production", "candidate"]), versions),
)
policies = st.builds(
    lambda policy, without: Choice(policy, tuple(without)),
    st.sampled_from(["default", "all", "latest:1", "latest:2", "3", "candidate", "1,production"]),
    st.sets(versions, max_size=2),
)


@given(st.lists(st.tuples(stores, policies, st.sets(versions)), max_size=8))
def test_whatever_happens_no_word_means_a_version_that_is_not_loaded_and_none_that_a_word_means_is_retired(history):
    loaded, words = set(), Words()
    for store, choice, loads in history:
        wanted = want(store, choice)
        assert isinstance(wanted, Wanted)
        loaded |= wanted.versions & loads  # those that load; the others fail
        before, words = words, settle(wanted, loaded, words)
        assert words.versions <= loaded
        assert not words.versions & wanted.without
        keep = kept(wanted, loaded, words)
        assert words.versions <= keep <= loaded
        for alias, version in before.aliases.items():
            if alias in store.aliases and wanted.aliases.get(alias) and version in loaded - wanted.without:
                assert alias in words.aliases  # what meant something goes on meaning something
        loaded = set(keep)
