"""Perplexity: equal to the definition, with its protocol."""

import math
from types import SimpleNamespace

import pytest
import torch

from cfsp.checkpoints.load import load
from cfsp.data.texts import Files
from cfsp.data.tokens import TokenStream, encode
from cfsp.evaluation.perplexity import Perplexity, token_losses
from cfsp.evaluation.text_windows import TextWindows


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture
def text(text_file):
    return Files(str(text_file))


def value(text, loaded, **options):
    return Perplexity(text, **{"window": 32, "batch_size": 3} | options).run(*loaded)


def windows_of(ids, **options):
    """Return the windows of a text with these tokens; the BOS token is 7."""
    found = TextWindows("perplexity", None, **options)
    vars(found)["stream"] = lambda tokenizer: TokenStream(torch.tensor([*ids]), "", 1)
    return found.rows(SimpleNamespace(bos_token_id=7))


@torch.no_grad()
def test_equals_the_models_own_loss(loaded, text):
    model, tokenizer = loaded
    ids = torch.tensor(encode(tokenizer, text.joined()))
    windows = ids[: len(ids) // 32 * 32].view(-1, 32)
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in windows]
    found = value(text, loaded)
    metric = found["perplexity/files:text.txt"]
    assert metric.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert metric.n == len(windows) * 31
    assert metric.stderr > 0
    per_byte = len(ids) / len(text.joined().encode()) / math.log(2) * sum(losses) / len(losses)
    assert found["bits_per_byte/files:text.txt"].value == pytest.approx(per_byte, rel=1e-5)


@torch.no_grad()
def test_stride_scores_each_token_once_with_more_context(loaded, text):
    model, tokenizer = loaded
    ids = torch.tensor(encode(tokenizer, text.joined()))
    losses = []
    for start in range(0, len(ids) - 31, 8):
        row = ids[start : start + 32]
        logits = model(input_ids=row[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], row[1:], reduction="none")[-8:])
    metric = value(text, loaded, stride=8)["perplexity/files:text.txt"]
    assert metric.value == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)
    assert metric.protocol["stride"] == 8


def test_some_windows_are_spread_evenly_and_said(loaded, text):
    rows = {count: windows_of(range(42), window=4, windows=count) for count in (1, 3, 10)}
    assert rows[1][:, 0].tolist() == [0]
    assert rows[3][:, 0].tolist() == [0, 12, 24]  # of 10 windows the first, fourth and seventh
    assert rows[10].flatten().tolist() == [*range(40)]
    found = value(text, loaded, windows=2)
    assert {metric.protocol["windows"] for metric in found.values()} == {2}
    assert found["perplexity/files:text.txt"].n == 2 * 31
    whole = value(text, loaded)["perplexity/files:text.txt"]
    assert "windows" not in whole.protocol
    every = value(text, loaded, windows=whole.n // 31)["perplexity/files:text.txt"]
    assert every.value == whole.value


def test_batch_size_does_not_matter(loaded, text):
    one, other = (value(text, loaded, batch_size=size) for size in (1, 7))
    name = "perplexity/files:text.txt"
    assert one[name].value == pytest.approx(other[name].value, rel=1e-6)
    assert one[name].protocol == other[name].protocol


def test_bos_takes_a_place_in_the_window_and_is_not_scored(loaded, text):
    rows = windows_of(range(100), window=32, bos=True)
    assert rows[:, 0].tolist() == [7, 7, 7]
    assert rows[1, 1:].tolist() == [*range(31, 62)]
    assert value(text, loaded, bos=True)["perplexity/files:text.txt"].n % 31 == 0


def test_protocol_says_what_the_number_depends_on(loaded, text):
    protocol = value(text, loaded)["perplexity/files:text.txt"].protocol
    assert protocol["text"] == "files:text.txt"
    assert (protocol["window"], protocol["stride"], protocol["bos"]) == (32, 32, False)
    assert (protocol["dtype"], protocol["device"]) == ("float32", "cpu")
    assert len(protocol["text_sha256"]) == len(protocol["tokens_sha256"]) == 16


def test_what_cannot_be_measured(loaded, text, tmp_path):
    with pytest.raises(ValueError, match="perplexity window=65: the model has 64 positions"):
        value(text, loaded, window=65)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match=r"has \d tokens; expected at least window=32"):
        value(Files(f"{tmp_path}/a.txt"), loaded)
    with pytest.raises(ValueError, match="expected null or 1 to 31"):
        value(text, loaded, stride=32)
    with pytest.raises(ValueError, match=r"windows=9999: text 'files:text.txt' has \d+ of window=32"):
        value(text, loaded, windows=9999)
    with pytest.raises(ValueError, match="perplexity windows=0: expected a whole number of at least 1"):
        value(text, loaded, windows=0)
    with pytest.raises(ValueError, match="perplexity window=1: expected a whole number of at least 2"):
        value(text, loaded, window=1)


def test_needs_a_causal_model(text):
    from families import make

    with pytest.raises(ValueError, match="needs a causal language model, not BertForMaskedLM"):
        Perplexity(text, window=32, batch_size=1).protocol(make("bert"), None)


def test_an_encoder_made_causal_by_its_head_only_is_refused(text):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    evaluator = Perplexity(text, window=32, batch_size=1)
    with pytest.raises(ValueError, match="not BertLMHeadModel of type bert"):
        evaluator.protocol(BertLMHeadModel(BertConfig(**sizes)), None)


def test_bfloat16_loss_is_taken_in_float32(tiny_checkpoint, text):
    name = "perplexity/files:text.txt"
    full, half = (value(text, load(tiny_checkpoint, dtype=dtype))[name] for dtype in ("float32", "bfloat16"))
    assert half.value == pytest.approx(full.value, rel=0.02)
    assert half.value != full.value
    model, tokenizer = load(tiny_checkpoint, dtype="bfloat16")
    ids = torch.tensor(encode(tokenizer, text.joined()))[:64].view(2, 32)
    exact = torch.nn.functional.cross_entropy(
        model(input_ids=ids).logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    assert torch.allclose(token_losses(model, ids).flatten().double(), exact, atol=1e-5)


def test_nan_is_an_error_not_a_number(tiny_checkpoint, text):
    model, tokenizer = load(tiny_checkpoint)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(ValueError, match="the loss is NaN or infinite"):
        value(text, (model, tokenizer))
