"""What workers tell each other: commands that no other overwrites, and reports of the living alone."""

import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from mlserve.serve.versions.agreement import Agreement, Applied, Asked, bury
from mlserve.serve.versions.policy import Choice, Words

# No system has so many processes.
NOBODY = 2**30


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "control").mkdir()
    return tmp_path


def test_what_is_asked_at_first_holds_until_somebody_asks_for_something_else(folder):
    first, other = Asked({"m": Choice("all")}), Asked({"m": Choice("3", ("2",), "3", 1)}, 1)
    agreement, sibling = Agreement(folder, first), Agreement(folder, first)
    assert agreement.asked() == first
    assert agreement.ask(lambda before: msgspec.structs.replace(before, names=other.names)) == 1
    assert sibling.asked() == other


def test_of_commands_at_the_same_time_none_is_lost(folder):
    agreements = [Agreement(folder, Asked()) for _ in range(8)]

    def ask(number):
        def add(before):
            return msgspec.structs.replace(before, names={**before.names, f"m{number}": Choice(asked=before.command)})

        return agreements[number % 8].ask(add)

    with ThreadPoolExecutor(8) as pool:
        commands = list(pool.map(ask, range(100)))
    asked = agreements[0].asked()
    assert sorted(commands) == list(range(1, 101))
    assert {f"m{number}": command for number, command in enumerate(commands)} == {
        name: choice.asked for name, choice in asked.names.items()
    }


def test_only_the_living_are_waited_for_and_the_last_words_of_the_dead_are_kept(folder):
    agreement, words = Agreement(folder, Asked()), {"m": Words({"production": "1"}, "1")}
    agreement.tell(Applied(3, words=words))
    (folder / "control" / f"worker-{NOBODY}.json").write_bytes(msgspec.json.encode(Applied(1)))
    assert agreement.applied() == {os.getpid(): Applied(3, words=words)}
    bury(folder, os.getpid())
    bury(folder, os.getpid())
    assert agreement.applied() == {}
    assert agreement.words() == [words]
