"""What evaluation=routing measures equals counts by hand."""

import pytest
import torch
from families import batches, make
from families import words as word_level
from random_routers import route
from routed_models import install_thresholds
from tokenizers.pre_tokenizers import Whitespace

from cfsp.data.texts import Files
from cfsp.evaluation.routed_shares import RoutedShares, figures_of, listen, macs_per_token
from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import routed_mlps
from cfsp.model.routers import ThresholdRouter

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
        for row in evaluator.reader.rows(words()):
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
    uses = listen(model, [{"input_ids": evaluator.reader.rows(words())}], [1], "a text")
    expected = 0.0
    for name, weight in model.named_parameters():
        if "layers" in name and weight.dim() == 2:
            block = name.partition(".mlp.")[0] + ".mlp.routed"
            mlp = ".mlp." in name and "router" not in name
            share = float((uses[block].shares / uses[block].tokens).mean()) if mlp else 1.0
            expected += weight.numel() * share
    assert macs_per_token(model, uses) == pytest.approx(expected)


def test_padding_is_not_counted():
    """What padded rows use is what the same rows use alone; a union is of the places that all rows have."""
    model, batch = route(make("bert")), batches(1, size=3, tokens=9, padded=True)[0]
    masks = {path: [] for path in routed_mlps(model)}
    for row, shown in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        with torch.no_grad():
            model(input_ids=row[shown.bool()][None])
        for path, one in routed_mlps(model).items():
            masks[path].append(one.chosen)
    uses = listen(model, [batch], [1, 3], "rows")
    found = figures_of(model, uses, [1, 3])
    expected = torch.stack([torch.cat(rows).float().mean() for rows in masks.values()]).mean()
    assert found["active_share"] == pytest.approx(float(expected), abs=1e-6)
    assert all(use.tokens == int(batch["attention_mask"].sum()) < 27 for use in uses.values())
    together = [torch.stack([row[:7] for row in rows]).any(0).float().mean() for rows in masks.values()]
    assert found["union_share_of_3"] == pytest.approx(float(torch.stack(together).mean()), abs=1e-6)


def test_a_fused_matrix_counts_for_its_weights():
    model, data = make("phi3"), batches(1)
    for site in find_sites(model):
        router = ThresholdRouter(32, 40, 1)
        router.thresholds.data = torch.tensor([-1.0, 1e9])  # all of gate and up, nothing of down
        install_thresholds(model, site, router)
    found = figures_of(model, listen(model, data, [1], "a text"), [1])
    assert found["active_share"] == pytest.approx(2 / 3)


def test_the_keys_of_both_models_agree_and_too_few_windows_are_named(evaluator, tmp_path):
    assert values(evaluator, make("llama")).keys() == values(evaluator, route(make("llama"))).keys()
    short = RoutedShares(text=evaluator.text, window=16, windows=90, batches=[1])
    with pytest.raises(ValueError, match=r"windows=90: .* has 8 of window=16; expected at most that"):
        short.run(make("llama"), words())
    with pytest.raises(ValueError, match=r"batches=\[1, 8\] with windows=4: .* expected windows=8 or more"):
        RoutedShares(text=evaluator.text, window=16, windows=4, batches=[1, 8])
