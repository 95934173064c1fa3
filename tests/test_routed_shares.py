"""What evaluation=routing measures equals counts by hand."""

import pytest
import torch
from families import make
from families import words as word_level
from random_routers import route
from tokenizers.pre_tokenizers import Whitespace

from cfsp.data.texts import Files
from cfsp.evaluation.routed_shares import RoutedShares, macs_per_token
from cfsp.model.modeling_routed import routed_mlps

TEXT = " ".join(f"w{2 + (place * place) % 59}" for place in range(128))


def words():
    """A tokenizer that splits a text at its spaces."""
    tokenizer = word_level()
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.fixture
def evaluator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return RoutedShares(text=Files(str(path)), window=16, windows=4, batches=[1, 2, 4])


def values(evaluator, model):
    return {name.partition("/")[0]: one.value for name, one in evaluator.run(model, words()).items()}


def test_a_dense_model_uses_everything(evaluator):
    model = make("llama")
    found = values(evaluator, model)
    assert {found[f"union_share_of_{size}"] for size in (1, 2, 4)} | {found["active_share"]} == {1.0}
    assert found["experts_used_90_to_100"] == 1.0
    layers = sum(w.numel() for n, w in model.named_parameters() if "_proj" in n)
    assert found["gflops_per_token"] == pytest.approx(2 * layers / 2**30)


def test_shares_are_those_of_the_masks(evaluator):
    model = route(make("llama"))
    found = values(evaluator, model)
    masks = {path: [] for path in routed_mlps(model)}
    with torch.no_grad():
        for row in evaluator.ids(words()):
            model(input_ids=row[None])
            for path, one in routed_mlps(model).items():
                masks[path].append(one.chosen.float())
    blocks = [torch.stack(one) for one in masks.values()]  # [sequences, tokens, experts]
    for place, mask in enumerate(blocks):
        assert found[f"active_share_block_{place}"] == pytest.approx(float(mask.mean()), abs=1e-6)
    assert found["active_share"] == pytest.approx(float(torch.stack(blocks).mean()), abs=1e-6)
    assert found["union_share_of_1"] == pytest.approx(found["active_share"], abs=1e-6)
    whole = torch.stack([mask.amax(0).mean() for mask in blocks]).mean()
    assert found["union_share_of_4"] == pytest.approx(float(whole), abs=1e-6)
    assert found["union_share_of_1"] < found["union_share_of_2"] < found["union_share_of_4"]
    assert sum(value for name, value in found.items() if name.startswith("experts_used")) == pytest.approx(1)


def test_flops_are_those_of_the_active_weights_and_the_routers(evaluator):
    model = route(make("llama"))
    uses = evaluator.listen(model, evaluator.ids(words()))
    expected = 0.0
    for name, weight in model.named_parameters():
        if "layers" in name and weight.dim() == 2:
            block = name.partition(".mlp.")[0] + ".mlp.routed"
            mlp = ".mlp." in name and "router" not in name
            share = float((uses[block].shares / uses[block].tokens).mean()) if mlp else 1.0
            expected += weight.numel() * share
    assert macs_per_token(model, uses) == pytest.approx(expected)


def test_the_keys_of_both_models_agree_and_too_few_windows_are_named(evaluator, tmp_path):
    assert values(evaluator, make("llama")).keys() == values(evaluator, route(make("llama"))).keys()
    short = RoutedShares(text=evaluator.text, window=16, windows=90, batches=[1])
    with pytest.raises(ValueError, match=r"windows=90: .* has 8 of window=16; expected at most that"):
        short.run(make("llama"), words())
    with pytest.raises(ValueError, match=r"batches=\[1, 8\] with windows=4: .* expected windows=8 or more"):
        RoutedShares(text=evaluator.text, window=16, windows=4, batches=[1, 8])
