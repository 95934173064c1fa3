"""Readings: what is made of a text is made once, and of this text by this tokenizer alone."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from cfsp.checkpoints.load import REFERENCE
from cfsp.cli.cache import text_of
from cfsp.data import readings, tokens
from cfsp.data.calibration import RandomWindows
from cfsp.data.examples import Examples
from cfsp.data.instructions import Conversations
from cfsp.data.overlaps import fingerprints
from cfsp.data.readings import kept_in, reading
from cfsp.data.sources import Instructions, Prose
from cfsp.data.texts import Files
from cfsp.data.tokens import document_ids, encode, lists, name_tokenizer, ragged, token_stream
from cfsp.evaluation.perplexity import Perplexity
from cfsp.storage.cache import OFF, Cache


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Each test as in a new process."""
    monkeypatch.setattr(readings, "KEPT", {})


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    made = [
        {"text": f"the {number} cats " * 9, "prompt": "say", "response": f"{number}"} for number in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    return str(path)


@pytest.fixture
def uses(rows):
    """All that reads a text, as what it makes of it."""
    text = Files(rows)
    data = {"window": 16, "packing": False, "held_out": 1, "seed": 0, "weights": None, "pad_token": "<pad>"}

    def examples(source, tokenizer):
        data["pad_token"] = tokenizer.convert_ids_to_tokens(0)
        return [*Examples({"a": source}, **data).split(tokenizer)]

    def drawn(tokenizer, within):
        windows = RandomWindows(text, 5, 16, 8, 0, within_documents=within)
        return windows.batches(tokenizer)[0]["input_ids"].tolist()

    return {
        "joined": lambda tokenizer: drawn(tokenizer, False),
        "documents": lambda tokenizer: drawn(tokenizer, True),
        "perplexity": lambda tokenizer: Perplexity(text, 16, 4).reader.stream(tokenizer).ids.tolist(),
        "prose": lambda tokenizer: examples(Prose(text), tokenizer),
        "answers": lambda tokenizer: examples(Instructions(Conversations("pairs", rows)), tokenizer),
        "all": lambda tokenizer: examples(Instructions(Conversations("pairs", rows), False), tokenizer),
        "overlaps": lambda _: fingerprints(text).tolist(),
    }


def test_everything_is_made_once_for_a_process_and_once_for_a_cache(uses, tokenizer, tmp_path, monkeypatch):
    made = []
    real = readings.write
    monkeypatch.setattr(readings, "write", lambda *args: made.append(args[2]) or real(*args))
    with kept_in(Cache(tmp_path / "cache")):
        first = {name: use(tokenizer) for name, use in uses.items()}
        assert len(made) == 5  # one stream, drawn windows, documents, answers, windows of words
        assert {name: use(tokenizer) for name, use in uses.items()} == first
        readings.KEPT.clear()  # another process
        assert {name: use(tokenizer) for name, use in uses.items()} == first
    assert len(made) == 5
    readings.KEPT.clear()
    assert readings.CACHE.get() is OFF
    assert {name: use(tokenizer) for name, use in uses.items()} == first


def test_a_process_tokenises_a_text_once_without_a_cache(text_file, tokenizer, monkeypatch):
    read = []
    monkeypatch.setattr(tokens, "encode", lambda *args: read.append(args[1]) or encode(*args))
    for _ in range(2):
        for size in (8, 16):
            RandomWindows(Files(str(text_file)), 4, size, 8, 0).batches(
                AutoTokenizer.from_pretrained(REFERENCE)
            )
        Perplexity(Files(str(text_file)), 16, 4).reader.stream(tokenizer)
    assert [text for text in read if text] == [text_file.read_text()]


def test_ids_are_those_of_the_tokenizer(rows, tokenizer):
    documents = Files(rows).documents()
    assert [*document_ids(Files(rows), tokenizer)] == [encode(tokenizer, document) for document in documents]
    found = token_stream(Files(rows), tokenizer)
    assert found.ids.tolist() == encode(tokenizer, "\n\n".join(documents))
    assert (found.ids.dtype, found.size) == (torch.int64, len("\n\n".join(documents).encode()))


def test_lists_of_any_length_come_back():
    for given in ([], [[]], [[1, 2], [], [3]]):
        assert [*lists(ragged("ids", given), "ids")] == given


def test_another_text_or_another_tokenizer_has_readings_of_its_own(rows, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.add_tokens("the 1 cats")
    assert name_tokenizer(other) != name_tokenizer(tokenizer)
    assert token_stream(Files(rows), other).ids.tolist() != token_stream(Files(rows), tokenizer).ids.tolist()
    (tmp_path / "other.txt").write_text("something else")
    assert token_stream(Files(f"{tmp_path}/other.txt"), tokenizer).ids.tolist() == encode(
        tokenizer, "something else"
    )
    # The same letters in other documents are other documents.
    assert readings.name_documents(["ab", "c"]) != readings.name_documents(["a", "bc"])


def test_a_tokenizer_is_the_same_one_from_wherever_and_however_it_was_used(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.pad_token = again.convert_ids_to_tokens(0)
    again(["a", "b c d e"], padding=True, truncation=True, max_length=2)
    assert name_tokenizer(again) == name_tokenizer(tokenizer)


def test_a_tokenizer_of_other_code_has_no_name_and_nothing_of_it_is_kept(rows, tokenizer):
    class Own(type(tokenizer)):
        pass

    own = copy.deepcopy(tokenizer)
    own.__class__ = Own
    assert name_tokenizer(own) is None
    assert token_stream(Files(rows), own).ids.tolist() == token_stream(Files(rows), tokenizer).ids.tolist()
    assert len(readings.KEPT) == 1


def test_an_entry_that_cannot_be_read_is_made_again(rows, tokenizer, tmp_path, capsys):
    with kept_in(Cache(tmp_path / "cache")):
        expected = token_stream(Files(rows), tokenizer).ids
        (entry,) = (tmp_path / "cache" / "texts").glob("*.safetensors")
        assert text_of(entry) == "files:rows.jsonl"
        whole = entry.read_bytes()
        entry.write_bytes(whole[:-1])
        readings.KEPT.clear()
        assert torch.equal(token_stream(Files(rows), tokenizer).ids, expected)
        assert entry.name in capsys.readouterr().err
        assert entry.read_bytes() == whole


@pytest.mark.slow
def test_windows_of_words_have_the_same_names_in_every_process(rows):
    command = f"from cfsp.data.overlaps import *; print(fingerprints(Files({rows!r})).tolist())"
    code = "from cfsp.data.texts import Files; " + command
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        assert json.loads(out.stdout) == fingerprints(Files(rows)).tolist()


def test_a_process_keeps_no_more_than_so_many(monkeypatch):
    monkeypatch.setattr(readings, "MOST", 2)
    made = []
    for name in ("a", "b", "a", "c", "a", "b"):
        reading("test", "", [name], lambda name=name: made.append(name) or {})
    assert made == ["a", "b", "c", "b"]
