"""Tokens: texts as token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cfsp.bars import bar
from cfsp.data.readings import Reading, content, reading
from cfsp.data.texts import Text

Ids = list[int]


@dataclass(frozen=True)
class Stream:
    """A joined text. ids: its tokens, without special ones. sha256, size: of its bytes in UTF-8."""

    ids: Tensor  # [tokens]
    sha256: str
    size: int


def stream(text: Text, tokenizer: PreTrainedTokenizerBase) -> Stream:
    """All documents of a text as one stream of tokens. Raises ValueError if the text is empty."""
    joined = text.joined(tokenizer)
    data = joined.encode()
    name = hashlib.sha256(data).hexdigest()
    made = reading(
        "stream",
        text.label,
        [name, identity(tokenizer)],
        lambda: {"ids": torch.tensor(encode(tokenizer, joined), dtype=torch.int32)},
    )
    return Stream(made["ids"].long(), name, len(data))


def document_ids(text: Text, tokenizer: PreTrainedTokenizerBase) -> Iterator[Ids]:
    """The token ids of every document of a text, without special ones."""
    documents = text.written(tokenizer)

    def make() -> Reading:
        read = bar(documents, f"read {text.label}", "document")
        return ragged("ids", (encode(tokenizer, document) for document in read))

    made = reading("documents", text.label, [content(documents), identity(tokenizer)], make)
    yield from lists(made, "ids")


def ragged(name: str, rows: Iterable[Sequence[int]]) -> Reading:
    """Lists of different lengths as tensors."""
    flat, lengths = array("i"), array("q")
    for row in rows:
        flat.extend(row)
        lengths.append(len(row))
    return {
        name: torch.tensor(flat, dtype=torch.int32),
        f"{name}_lengths": torch.tensor(lengths, dtype=torch.int64),
    }


def lists(made: Reading, name: str) -> Iterator[Ids]:
    """What `ragged` was given."""
    for row in made[name].split(made[f"{name}_lengths"].tolist()):
        yield row.tolist()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids without special tokens, and without the warning that a text is a long one."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def identity(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Name a tokenizer by all that its tokens depend on; None if code outside transformers is part of it."""
    encode(tokenizer, "")  # turns off truncation and padding, which tokenizer.json may turn on
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if type(tokenizer).__module__.split(".")[0] != "transformers":
        return None
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(f"{type(tokenizer).__qualname__} {tokenizer.split_special_tokens}".encode())
    digest.update(f"{version('tokenizers')} {version('transformers')}".encode())
    return digest.hexdigest()


def bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The BOS token. Raises ValueError if the tokenizer has none."""
    if not isinstance(bos := tokenizer.bos_token_id, int):
        raise ValueError("bos=true: this tokenizer has no BOS token; expected bos=false")
    return bos
