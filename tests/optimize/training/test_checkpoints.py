import pytest
import torch

from mlserve.optimize.training.checkpoints import drop_checkpoint, fingerprint_of, read_checkpoint, write_checkpoint


class Trap:
    """Code that a pickle would run."""

    def __reduce__(self):
        return print, ("code of the checkpoint ran",)


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "folder" / "fit.pt"
    write_checkpoint(path, "one", {"epoch": 3, "weights": {"w": torch.arange(4.0)}})
    state, why = read_checkpoint(path, "one")
    assert state["epoch"] == 3
    assert torch.equal(state["weights"]["w"], torch.arange(4.0))
    assert why == ""
    assert [file.name for file in path.parent.iterdir()] == ["fit.pt"]


def test_without_a_file_there_is_nothing_to_say(tmp_path):
    assert read_checkpoint(tmp_path / "fit.pt", "one") == (None, "")


def test_a_checkpoint_of_another_training_is_not_used_and_said_so(tmp_path):
    path = tmp_path / "fit.pt"
    write_checkpoint(path, "one", {})
    state, why = read_checkpoint(path, "other")
    assert state is None
    assert "another training" in why


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_not_used_and_said_so(tmp_path, damage):
    path = tmp_path / "fit.pt"
    write_checkpoint(path, "one", {"weights": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:700] if damage is None else damage)
    state, why = read_checkpoint(path, "one")
    assert state is None
    assert "no checkpoint" in why


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    path = tmp_path / "fit.pt"
    torch.save({"format": 1, "fingerprint": "one", "state": Trap()}, path)
    assert read_checkpoint(path, "one")[0] is None
    assert "ran" not in capsys.readouterr().out
    torch.load(path, weights_only=False)  # the trap works
    assert "ran" in capsys.readouterr().out


def test_a_writer_that_fails_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "fit.pt"
    write_checkpoint(path, "one", {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, "one", {"epoch": 2, "code": lambda: None})
    assert read_checkpoint(path, "one")[0] == {"epoch": 1}
    drop_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_schedules_names_shapes_and_values_apart():
    weights = {"w": torch.zeros(2, 3)}
    prints = [
        fingerprint_of(["a"], weights),
        fingerprint_of(["b"], weights),
        fingerprint_of(["a"], {"v": torch.zeros(2, 3)}),
        fingerprint_of(["a"], {"w": torch.zeros(3, 2)}),
        fingerprint_of(["a"], {"w": torch.zeros(2, 3, dtype=torch.float64)}),
        fingerprint_of(["a"], {"w": torch.ones(2, 3)}),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint_of(["a"], {"w": torch.zeros(2, 3)}) == prints[0]
