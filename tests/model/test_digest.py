"""One digest for a model: of every file that is part of it, and of no other."""

from hypothesis import given
from hypothesis import strategies as st

from mlserve.model.artifact import MODEL_FILE, FileRecord
from mlserve.model.digest import model_sha256

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
MODEL_FILES = st.sampled_from(["model.onnx", "model.onnx.data", "model.xml", "model.bin", "model.pt2"])
OTHERS = st.dictionaries(st.sampled_from(["tokenizer.json", "labels.txt"]), DIGESTS)


def records(files):
    return {name: FileRecord(sha256, 1) for name, sha256 in files.items()}


@given(model=st.dictionaries(MODEL_FILES, DIGESTS, min_size=1), others=OTHERS, data=st.data())
def test_it_changes_with_any_file_of_the_model_and_with_nothing_else(model, others, data):
    found = model_sha256(records(model))
    assert len(found) == 64
    assert model_sha256(records({**others, **dict(reversed(model.items()))})) == found
    name, sha256 = data.draw(st.sampled_from(sorted(model))), data.draw(DIGESTS)
    assert (model_sha256(records({**model, name: sha256})) == found) == (sha256 == model[name])
    fewer = {other: digest for other, digest in model.items() if other != name}
    assert model_sha256(records(fewer)) != found


@given(sha256=DIGESTS, others=OTHERS)
def test_a_model_that_is_one_file_of_onnx_keeps_the_digest_that_it_always_had(sha256, others):
    assert model_sha256(records({MODEL_FILE: sha256, **others})) == sha256
    assert model_sha256(records(others)) == ""
