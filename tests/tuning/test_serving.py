import os
import urllib.request

import psutil
import pytest

from mlserve.bench.cores import own_cores, split_cores
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.subject import url_subject
from mlserve.bench.target import parse_target
from mlserve.errors import EngineError
from mlserve.model.artifact import Artifact, FileRecord, Manifest
from mlserve.model.digest import model_sha256
from mlserve.tuning.serving import ServerOptions, artifact_subject, file_subject, serving


@pytest.fixture
def children():
    """The processes that this one started since the test began, and theirs.

    Servers of other tests may still be up, and start processes of their own meanwhile.
    """
    own = psutil.Process(os.getpid())
    before = set(own.children())

    def look():
        started = set(own.children()) - before
        found = [process for child in started for process in (child, *child.children(recursive=True))]
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    return look


def test_a_server_answers_while_the_block_lasts_and_is_gone_after_it(tiny_onnx, tmp_path, children):
    with serving(str(tiny_onnx), tmp_path, ServerOptions(max_batch_rows=4, workers=2, spare_cores=3)) as served:
        assert (served.model, served.version) == ("tiny", "1")
        assert served.settings.max_batch_rows == 4
        assert (served.settings.cpus, served.spare_cpus) == split_cores(own_cores(), 3)
        assert (served.settings.workers, served.settings.threads) == (2, max(1, len(served.settings.cpus) // 2))
        with urllib.request.urlopen(f"{served.http}/ready") as answer:
            assert answer.status == 200
        assert [spec.name for spec in url_subject(parse_target(served.grpc, "tiny")).inputs] == ["x"]
        held = {tuple(child.cpu_affinity()) for child in children()}
        assert held == {served.settings.cpus}
        assert len(served.pids) == 3  # the supervisor and its workers
        beside = [child.ppid() for child in children() if child.pid not in served.pids]
        assert sorted(beside) == sorted(served.pids[1:])  # of each worker, who speaks for it when it is killed
    assert children() == []


def test_a_server_is_gone_when_the_block_fails(tiny_onnx, tmp_path, children):
    def fail():
        assert children()
        raise KeyError

    with pytest.raises(KeyError), serving(str(tiny_onnx), tmp_path, ServerOptions()):
        fail()
    assert children() == []


def test_a_server_that_does_not_start_says_why_in_its_own_words(tmp_path, children):
    with (
        pytest.raises(EngineError, match=r"has no model 'missing'.*mlserve optimize"),
        serving("missing", tmp_path, ServerOptions()),
    ):
        pass
    assert children() == []


@pytest.fixture(scope="module")
def served(tiny_onnx, tmp_path_factory):
    """A server of a file that has a neighbour, and the file."""
    model = tmp_path_factory.mktemp("served") / "tiny.onnx"
    model.write_bytes(tiny_onnx.read_bytes())
    (model.parent / "tokenizer.json").write_text("{}")
    with serving(str(model), model.parent, ServerOptions()) as served:
        yield served, model


def test_a_file_is_a_subject_with_our_settings_and_its_neighbours(served):
    served, model = served
    subject = file_subject(served, model, "grpc", PayloadWish())
    assert (subject.target.protocol, subject.target.model) == ("grpc", "tiny")
    assert subject.inputs[0].shape == ("batch", 30)
    assert (subject.metrics_url, subject.server) == (served.http, served.settings)
    assert subject.cpus == served.spare_cpus
    assert subject.wish.tokenizer == model.parent / "tokenizer.json"


def test_a_model_is_known_by_its_files_whatever_it_is_kept_in(served, tmp_path):
    files = {"model.xml": FileRecord("a" * 64, 1), "model.bin": FileRecord("b" * 64, 9)}
    manifest = Manifest(name="tiny", version=1, variant="int8", format="openvino", files=files, inputs=(), outputs=())
    model = artifact_subject(served[0], Artifact(tmp_path, manifest), "rest", PayloadWish()).model
    assert (model.sha256, model.size_bytes) == (model_sha256(files), 10)
