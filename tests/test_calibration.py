"""Calibration: windows that depend on the seed alone."""

import pytest
import torch
from transformers import AutoTokenizer

from cfsp.checkpoints.load import REFERENCE
from cfsp.data.calibration import RandomWindows
from cfsp.data.texts import Files


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REFERENCE)


def windows(text, **changes):
    options = {"samples": 10, "seqlen": 16, "batch_size": 4, "seed": 0}
    return RandomWindows(text, **options | changes)


def ids_of(batches):
    return torch.cat([batch["input_ids"] for batch in batches])


def test_shapes(tokenizer, text_file):
    batches = windows(Files(str(text_file))).batches(tokenizer)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 16), (4, 16), (2, 16)]
    assert all(batch["attention_mask"].all() for batch in batches)


def test_same_seed_same_windows_whatever_the_batch_size(tokenizer, text_file):
    text = Files(str(text_file))
    first = ids_of(windows(text).batches(tokenizer))
    assert torch.equal(first, ids_of(windows(text, batch_size=3).batches(tokenizer)))
    assert not torch.equal(first, ids_of(windows(text, seed=1).batches(tokenizer)))


def test_windows_are_pieces_of_the_text(tokenizer, text_file):
    whole = text_file.read_text()
    for row in ids_of(windows(Files(str(text_file))).batches(tokenizer)):
        assert tokenizer.decode(row) in whole


def test_windows_come_from_the_whole_text(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(str(number) for number in range(1000, 9999)))
    text = Files(f"{tmp_path}/a.txt")
    rows = ids_of(windows(text, samples=200).batches(tokenizer))
    places = [text.joined().index(tokenizer.decode(row)) / len(text.joined()) for row in rows]
    assert min(places) < 0.05
    assert max(places) > 0.95
    assert 0.4 < sum(places) / len(places) < 0.6


def test_windows_within_documents_never_cross(tokenizer, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"document {number} " * (2 if number == 0 else 30))
    text = Files(f"{tmp_path}/*.txt")
    for row in ids_of(windows(text, within_documents=True, samples=20).batches(tokenizer)):
        digits = {char for char in tokenizer.decode(row) if char.isdigit()}
        assert len(digits) == 1
        assert digits != {"0"}  # too short for a window


def test_bos_begins_every_window(tokenizer, text_file):
    ids = ids_of(windows(Files(str(text_file)), bos=True).batches(tokenizer))
    assert ids.shape == (10, 16)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()


def test_text_too_short(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one two three")
    text = Files(f"{tmp_path}/a.txt")
    with pytest.raises(ValueError, match=r"has \d tokens, less than one window of seqlen=16"):
        windows(text).batches(tokenizer)
    with pytest.raises(ValueError, match="no document of text 'files:a.txt' has seqlen=16 tokens"):
        windows(text, within_documents=True).batches(tokenizer)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"seqlen": 1}, {"batch_size": 0}])
def test_bad_options(text_file, wrong):
    with pytest.raises(ValueError, match="expected a whole number of at least"):
        windows(Files(str(text_file)), **wrong)
