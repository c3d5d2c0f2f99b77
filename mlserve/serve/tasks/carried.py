"""What a version carries for people; one that was made before manifests said so tells it by its files."""

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from mlserve.model.artifact import Artifact
from mlserve.model.processing import Processing, TextInput, answer_form, takes_text
from mlserve.model.tokens import TOKENIZER_FILE, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Carried"]


class Carried:
    """How texts and images become inputs of the version in `artifact`, and what its outputs mean.

    Only files that the manifest binds are opened.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.labels = artifact, artifact.manifest.labels
        self.processing = _processing(artifact)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer of `processing.text`, opened once. Raises DataFileError."""
        text = self.processing.text
        assert text is not None
        return open_tokenizer(self.artifact.directory / text.tokenizer, text.max_tokens, text.pad_token)


def _processing(artifact: Artifact) -> Processing:
    manifest = artifact.manifest
    if manifest.processing is not None:
        text = manifest.processing.text
        if text is None or text.tokenizer in manifest.files:
            return manifest.processing
        return msgspec.structs.replace(manifest.processing, text=None)
    if TOKENIZER_FILE not in manifest.files or not takes_text(manifest.inputs):
        return Processing()
    return Processing(text=TextInput(), answer=answer_form(manifest.task, manifest.labels, manifest.outputs))
