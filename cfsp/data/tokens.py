"""Tokens: texts as token ids."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cfsp.bars import bar
from cfsp.data.readings import Reading, name_documents, reading
from cfsp.data.texts import Text
from cfsp.storage.fingerprints import digest

Ids = list[int]

PROBE = "It's 12,345.6 words: a naïve café, don't!\n\n\tx = [1, 2]  # 今日は 🙂 \U000e0001"
"""A text whose tokens show how a tokenizer splits, normalises, and puts special tokens around a text."""

VOCABULARIES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]] = WeakKeyDictionary()
"""Tokenizer -> its number of tokens, and their hash, which takes a second for a large one."""


@dataclass(frozen=True)
class TokenStream:
    """A joined text. ids: its tokens, without special ones. sha256, size: of its bytes in UTF-8."""

    ids: Tensor  # [tokens]
    sha256: str
    size: int


def token_stream(text: Text, tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """Return all documents of a text as one stream of tokens. Raises ValueError if the text is empty."""
    joined = text.joined(tokenizer)
    data = joined.encode()
    name = hashlib.sha256(data).hexdigest()
    made = reading(
        "stream",
        text.label,
        [name, name_tokenizer(tokenizer)],
        lambda: {"ids": torch.tensor(encode(tokenizer, joined), dtype=torch.int32)},
    )
    return TokenStream(made["ids"].long(), name, len(data))


def document_ids(text: Text, tokenizer: PreTrainedTokenizerBase) -> Iterator[Ids]:
    """Yield the token ids of every document of a text, without special ones."""
    documents = text.written(tokenizer)

    def make() -> Reading:
        read = bar(documents, f"read {text.label}", "document")
        return ragged("ids", (encode(tokenizer, document) for document in read))

    made = reading("documents", text.label, [name_documents(documents), name_tokenizer(tokenizer)], make)
    yield from lists(made, "ids")


def ragged(name: str, rows: Iterable[Sequence[int]]) -> Reading:
    """Store lists of different lengths as two tensors: all values, and the lengths."""
    flat, lengths = array("i"), array("q")
    for row in rows:
        flat.extend(row)
        lengths.append(len(row))
    return {
        name: torch.tensor(flat, dtype=torch.int32),
        f"{name}_lengths": torch.tensor(lengths, dtype=torch.int64),
    }


def lists(made: Reading, name: str) -> Iterator[Ids]:
    """Yield the lists that `ragged` stored."""
    for row in made[name].split(made[f"{name}_lengths"].tolist()):
        yield row.tolist()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Return token ids without special tokens. The warning about long texts is off."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def name_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a hash of all that a tokenizer's output depends on; None if its code is outside transformers."""
    encode(tokenizer, "")  # turns off truncation and padding, which tokenizer.json may turn on
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if type(tokenizer).__module__.split(".")[0] != "transformers":
        return None
    found = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    found.update(f"{type(tokenizer).__qualname__} {tokenizer.split_special_tokens}".encode())
    found.update(f"{version('tokenizers')} {version('transformers')}".encode())
    return found.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's vocabulary, its special tokens, and what it makes of a text."""
    size = len(tokenizer)
    if VOCABULARIES.get(tokenizer, (0, ""))[0] != size:
        places = tokenizer.get_vocab()
        rows = "\0".join(sorted(places, key=places.__getitem__)).encode("utf-8", "surrogatepass")
        VOCABULARIES[tokenizer] = size, hashlib.sha256(rows).hexdigest()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    made = tokenizer(PROBE, verbose=False)["input_ids"]
    return digest([VOCABULARIES[tokenizer][1], special, made])


def bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the BOS token. Raises ValueError if the tokenizer has none."""
    if not isinstance(bos := tokenizer.bos_token_id, int):
        raise ValueError("bos=true: this tokenizer has no BOS token; expected bos=false")
    return bos
