"""What a model's own code may do while it is imported: nothing that stays."""

import io
import logging
import os
import pickle
import re
import subprocess
import sys
import zipfile

import pytest
import torch

from mlserve.engines.torch_engine import load_program
from mlserve.engines.unpickling import only_tensors
from mlserve.errors import ModelFileError
from mlserve.optimize.importing import Source, import_model

_TRY = """
import sys, os, pathlib
from mlserve.optimize.importers.write_wall import shut_writes

allowed, other = map(pathlib.Path, sys.argv[1:3])
(other / "kept").write_text("kept")
held = shut_writes([allowed], newest=int(sys.argv[3]))
(allowed / "made").write_text("1")
(allowed / "folder").mkdir()
tried = {
    "write": lambda: (other / "made").write_text("1"),
    "change": lambda: (other / "kept").write_text("changed"),
    "shorten": lambda: os.truncate(other / "kept", 0),
    "remove": lambda: (other / "kept").unlink(),
    "make a folder": lambda: (other / "folder").mkdir(),
    "link": lambda: (other / "link").symlink_to("/"),
    "move": lambda: (allowed / "made").rename(other / "made"),
    "start another": lambda: os.system(f"echo 1 > {other}/made 2> /dev/null"),
}
for name, do in tried.items():
    try:
        do()
    except OSError:
        pass
print(held, sorted(os.listdir(allowed)), sorted(os.listdir(other)), (other / "kept").read_text())
"""


@pytest.mark.parametrize(
    ("newest", "left"),
    [(3, "all ['folder', 'made'] ['kept'] kept\n"), (2, "most ['folder', 'made'] ['kept'] \n")],
    ids=["Linux 6.2", "Linux 5.19 to 6.1, where files elsewhere can be shortened"],
)
def test_nothing_is_written_outside_what_is_allowed(tmp_path, newest, left):
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    other.mkdir()
    done = subprocess.run([sys.executable, "-c", _TRY, allowed, other, str(newest)], capture_output=True, text=True)
    if done.stdout.startswith("nothing"):
        pytest.skip("this system has no Landlock")
    assert done.stdout == left, done.stderr


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),)), path)
    return path


def with_sample_inputs(program, out, sample):
    """`program` with other sample inputs, which torch unpickles."""
    content = io.BytesIO()
    torch.save(sample, content)
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, content.getvalue() if "sample_inputs" in name else source.read(name))
    return out


def test_a_program_with_code_in_it_is_refused_before_that_runs(program, tmp_path):
    canary = tmp_path / "canary"
    evil = with_sample_inputs(program, tmp_path / "evil.pt2", ((Canary(canary),), {}))
    with pytest.raises(
        ModelFileError, match=r"evil\.pt2 holds a pickle that runs code when it is loaded \(posix\.mkdir\)"
    ):
        load_program(evil)
    assert not canary.exists()
    assert load_program(program).graph_signature.user_inputs
    logging.disable(logging.CRITICAL)
    torch.export.load(evil)
    logging.disable(logging.NOTSET)
    assert canary.exists()  # the control: it would have run


def test_a_program_whose_text_runs_is_refused_by_the_importer_without_trust(tmp_path, import_here):
    canary, path, evil = tmp_path / "canary", tmp_path / "program.pt2", tmp_path / "evil.pt2"
    rows = torch.export.Dim("rows", min=2, max=64)
    example = (torch.ones(4, 3),)
    program = torch.export.export(torch.nn.Linear(3, 2).eval(), example, dynamic_shapes=({0: rows},))
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("models/model.json"):
                size = re.search(r'"expr_str": "(Symbol[^"]+)"', content.decode())[1].encode()
                content = content.replace(size, f"open('{canary}', 'w').close()".encode())
            target.writestr(name, content)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelFileError, match=r"evil\.pt2 holds text that PyTorch could run as code .*expr_str: open"):
        import_model(Source(path=evil), out, lambda _: None)
    assert not canary.exists()
    assert not any(out.iterdir())
    import_here(Source(path=path), out, lambda _: None)  # the control: without that text, the same program is imported
    assert any(out.iterdir())


def test_a_program_that_was_compiled_is_refused(program, tmp_path):
    path = tmp_path / "compiled.pt2"
    path.write_bytes(program.read_bytes())
    with zipfile.ZipFile(path) as archive:
        top = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{top}/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(ModelFileError, match=r"holds compiled code \(data/aotinductor/model/model.so\)"):
        load_program(path)


@pytest.mark.parametrize("name", ["torch._utils._import_dotted_name", "os.system", "torch.load", "numpy.load"])
def test_within_the_block_a_pickle_names_tensors_alone(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    named = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"."
    assert callable(pickle.loads(named))
    with pytest.raises(ModelFileError, match="holds a pickle that runs code"), only_tensors(tmp_path):
        pickle.loads(named)
    with only_tensors(tmp_path):
        plain = io.BytesIO()
        torch.save({"w": torch.nn.Parameter(torch.ones(2, dtype=torch.float16))}, plain)
        plain.seek(0)
        assert torch.load(plain, weights_only=False)["w"].dtype == torch.float16
    assert callable(pickle.loads(named))


def test_code_that_is_trusted_still_writes_nowhere(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "model.pt"
    torch.save(Canary(canary), path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelFileError, match=r"cannot be loaded|may write to folders of the import alone") as caught:
        import_model(Source(path=path, trust_pickle=True), out, lambda _: None)
    if "Permission denied" not in str(caught.value):
        pytest.skip("this system has no Landlock")
    assert not canary.exists()
    assert not any(out.iterdir())
