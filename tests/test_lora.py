"""LoRA: ranks, and adapters that are merged or kept apart."""

import copy
import json

import pytest
import torch
from families import batches, make
from routed_models import routed
from training import TINY, run

import cfsp
from cfsp.data.texts import Files
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.size import Size
from cfsp.model.modeling_routed import routed_mlps
from cfsp.records.record import Record
from cfsp.schedules.route_makers import Threshold
from cfsp.schedules.routed import RoutedOnce
from cfsp.schedules.trained import unchanged
from cfsp.training.base import Change
from cfsp.training.lora import Lora, block_ranks


@pytest.mark.parametrize("seed", range(20))
def test_ranks_sum_to_the_total_and_follow_the_weights(seed):
    weights = torch.rand(12, generator=torch.Generator().manual_seed(seed)).square().tolist()
    ranks = block_ranks(weights, total=96, least=2)
    assert sum(ranks) == 96
    assert min(ranks) >= 2
    order = sorted(range(12), key=weights.__getitem__)
    assert [ranks[block] for block in order] == sorted(ranks)
    free = [block for block in range(12) if ranks[block] > 3]
    exact = (96 - 2 * (12 - len(free))) / sum(weights[block] for block in free)
    assert all(abs(ranks[block] - weights[block] * exact) < 3 for block in free)


def test_ranks_in_closed_form():
    assert block_ranks([1, 2, 3], total=12, least=1) == [2, 4, 6]
    assert block_ranks([0, 0, 5], total=12, least=1) == [1, 1, 10]
    assert block_ranks([1, 1, 1], total=10, least=1) == [4, 3, 3]
    with pytest.raises(ValueError, match="not all of them 0"):
        block_ranks([0.0, 0.0], total=4, least=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "phi3", "gemma3_text"])
@pytest.mark.parametrize("proportional_to", ["uniform", "importance", "removed"])
def test_adapters_have_the_ranks_of_their_blocks(name, proportional_to):
    model = make(name)
    count = len(cfsp.model.blocks.block_modules(model))
    change = Change(tuple(range(count)), (0.1,) * (count - 1) + (0.5,), (0.6,) + (0.1,) * (count - 1))
    lora = Lora(rank=4, alpha=8, dropout=0.0, proportional_to=proportional_to)
    before = {path: model.get_submodule(path).weight.shape for paths in lora.layers(model) for path in paths}
    module, notes = lora.attach(model, change)
    assert sum(notes["ranks"]) == 4 * count
    for paths, rank in zip(lora.layers(module.get_base_model()), notes["ranks"], strict=True):
        for path in paths:
            if path in before:
                layer = module.get_base_model().get_submodule(path)
                assert layer.r["default"] == rank
                assert layer.scaling["default"] == pytest.approx(2.0)
    trainable = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    expected = 0
    for path, shape in before.items():
        block = next(int(part) for part in path.split(".") if part.isdigit())
        expected += notes["ranks"][block] * sum(shape)
    assert trainable == expected


def test_merged_adapters_compute_the_same(tiny, tokenizer, trained_with, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    apart = run(trained_with(Lora(**lora, merge=False)), copy.deepcopy(tiny), tokenizer, tmp_path / "a")
    merged = run(trained_with(Lora(**lora)), copy.deepcopy(tiny), tokenizer, tmp_path / "b")
    ids = torch.arange(5, 15)[None]
    assert type(merged.model) is type(tiny)
    assert merged.adapters is None
    assert not any("lora" in name for name, _ in merged.model.named_modules())
    assert not torch.allclose(tiny(ids).logits, merged.model(ids).logits, atol=1e-3)
    torch.testing.assert_close(apart.model(ids).logits, merged.model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_adapters_kept_apart_are_saved_beside_the_model(cli, text_file, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    done = cli(
        "recovery=lora",
        "recovery.parameters.merge=false",
        "recovery/data=text",
        f"recovery.data.sources.text.text.paths={text_file}",
        *TINY,
        f"save={tmp_path / 'model'}",
    )
    record = Record.load(done)
    model, tokenizer = cfsp.load(tmp_path / "model")
    plain = Record.load(cli("overwrite=true"))
    assert record.parameters == plain.parameters
    assert record.sparsity == plain.sparsity
    assert record.parameters["pruned"]["model"] == model.num_parameters()
    assert record.training["adapters"] == record.training["trainable"] > 0
    with_adapters = PeftModel.from_pretrained(model, tmp_path / "model" / "adapters")
    named = json.loads((tmp_path / "model" / "adapters" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(tmp_path / "model")
    evaluated = Size(context=8).run(with_adapters.get_base_model(), tokenizer)  # adapters are read too
    plain_size = Size(context=8).run(cfsp.load(tmp_path / "model")[0], tokenizer)
    extra = evaluated["parameters"].value - plain_size["parameters"].value
    assert extra == record.training["adapters"]
    assert evaluated["macs_per_token"].value == pytest.approx(plain_size["macs_per_token"].value + extra)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model" / "adapters", trust_remote_code=True)
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(auto(ids).logits, with_adapters(ids).logits)
    assert "FOLDER/adapters" in (tmp_path / "model" / "README.md").read_text()
    evaluator = Perplexity(Files(str(text_file)), 32, 8)
    (name,) = [name for name in record.metrics["pruned"] if name.startswith("perplexity")]
    found = evaluator.run(with_adapters.get_base_model(), tokenizer)[name].value
    assert found == pytest.approx(record.metrics["pruned"][name].value, rel=1e-5)
    again = Record.load(cli(f"model.path={tmp_path / 'model'}", "sparsity=0.2"))
    assert again.metrics["dense"][name].value == pytest.approx(found, rel=1e-5)  # pruned with its adapters
    assert again.parameters["dense"] == record.parameters["pruned"]


def thinned_by_size():
    """A model of which every layer of an MLP reads its largest inputs alone, as TEAL's."""
    schedule = RoutedOnce(maker=Threshold(), active=0.5, sparsity=0.0)
    model, parts = make("llama"), {"criterion": "learned", "allocator": "uniform"}
    cfsp.apply(cfsp.plan(model, batches(), schedule=schedule, **parts), model)
    return model


@pytest.mark.parametrize(("family", "thinned"), [("llama", False), ("gpt2", False), ("llama", True)])
def test_adapters_of_a_routed_model_merge_into_what_they_were(family, thinned):
    """Neither its routers nor the layers that read a part of their inputs take adapters."""
    model = thinned_by_size() if thinned else routed(family)
    before = {name: one.clone() for name, one in model.state_dict().items() if ".routed." in name}
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    paths = lora.adapted(model)
    consumers = {one.consumer for one in routed_mlps(model).values()}
    assert paths
    assert not consumers & {*paths}
    assert any("mlp" in path for path in paths) != thinned
    assert not any(".routed" in path for path in paths)
    trained, _ = lora.attach(model, unchanged(model))
    torch.manual_seed(0)
    for name, weight in trained.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn_like(weight)
    batch = batches(1)[0]
    beside = trained(**batch).logits.detach()
    merged, _ = lora.detach(trained)
    torch.testing.assert_close(merged(**batch).logits.detach(), beside, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(merged.state_dict()[name], one) for name, one in before.items())
