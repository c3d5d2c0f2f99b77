"""A model's own tokenizer: the one place that opens it, and the names its answers go by."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlserve.errors import DataFileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TOKENIZED", "TOKENIZER_FILE", "open_tokenizer", "padding_id"]

TOKENIZER_FILE = "tokenizer.json"

TOKENIZED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""A transformer's input -> where a tokenizer's encoding has it."""

_LONGEST_TEXT_TOKENS = 512


def open_tokenizer(path: Path, max_tokens: int = 0, pad_token: str = "") -> "Tokenizer":
    """The tokenizer in `path`, padding to the longest text of a batch rather than to the length it was trained with.

    Texts are cut after `max_tokens`, by 0 where the file says, or else after 512. `pad_token` is what fills the others
    up, by "" what the file or custom says. Raises DataFileError when the file is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with a file
        raise DataFileError(f"{path} is no tokenizer that mlserve reads ({error}); save it again") from error
    padding = tokenizer.padding or {}
    names = [pad_token, padding.get("pad_token"), "[PAD]", "<pad>", "<|endoftext|>"]
    pad = next((name for name in names if name and tokenizer.token_to_id(name) is not None), None)
    if pad is not None:
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    if max_tokens:
        tokenizer.enable_truncation(max_tokens)
    elif tokenizer.truncation is None:
        tokenizer.enable_truncation(_LONGEST_TEXT_TOKENS)
    return tokenizer


def padding_id(tokenizer: "Tokenizer") -> int:
    """The token that fills a text up; 0 where the tokenizer has none, for what is masked is not looked at."""
    return int((tokenizer.padding or {}).get("pad_id", 0))
