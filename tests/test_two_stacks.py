"""Encoder-decoders: sites in both stacks, surgery, saving, statistics of each stack's own tokens."""

import copy

import pytest
import torch
import transformers as t
from two_stacks import BART, PAIRS, T5, make_pair, pair_batches

from cfsp.checkpoints.save import save
from cfsp.model.find_sites import find_sites, site_kinds
from cfsp.model.model_inputs import inputs_of
from cfsp.model.parameter_count import count_parameters
from cfsp.model.views import unit_cost
from cfsp.passes.walk import walking
from cfsp.plans.gates import Gates
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.surgery import apply
from cfsp.statistics.collect import collect

KINDS = ["mlp", "attention", "cross_attention"]


@pytest.fixture(params=PAIRS)
def name(request):
    return request.param


def cuts_of(sites, seed=0):
    """Keep a random part of every site, another number in each."""
    dice = torch.Generator().manual_seed(seed)
    made = []
    for site in sites:
        kept = int(torch.randint(1, site.units, (1,), generator=dice))
        keep = torch.randperm(site.units, generator=dice)[:kept].tolist()
        made.append(Cut(site.name, site.units, tuple(sorted(keep)), None, None, None))
    return made


def gates_of(cuts):
    return {cut.site: torch.tensor([float(unit in cut.keep) for unit in range(cut.units)]) for cut in cuts}


@torch.no_grad()
def masked_and_cut(model, sites, cuts):
    batch = pair_batches()[0]
    with Gates(model, sites, gates_of(cuts)):
        masked = model(**batch).logits
    apply(PrunePlan(tuple(cuts), {}), sites, model)
    return masked, model(**batch).logits


def answers(model, **options):
    batch = pair_batches()[0]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return model.generate(ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, **options)


def test_both_stacks_have_sites(name):
    model = make_pair(name)
    sites = find_sites(model, KINDS)
    assert site_kinds(model) == KINDS
    encoder, decoder = ([site for site in sites if part in site.name] for part in ("encoder.", "decoder."))
    assert {site.kind for site in encoder} == {"mlp", "attention"}
    assert {site.kind for site in decoder} == {*KINDS}
    assert len(sites) == len(encoder) + len(decoder)
    assert sorted({site.block for site in sites}) == [*range(len({site.blocks for site in sites}))]


def test_masked_and_cut_agree_and_the_parameters_are_gone(name):
    model = make_pair(name).double()
    sites, before = find_sites(model, KINDS), model.num_parameters()
    cuts = cuts_of(sites)
    gone = sum(len(cut.removed) * unit_cost(model, site) for cut, site in zip(cuts, sites, strict=True))
    masked, cut = masked_and_cut(model, sites, cuts)
    torch.testing.assert_close(cut, masked, rtol=0, atol=1e-12)
    assert before - model.num_parameters() == gone
    assert torch.equal(answers(model), answers(model, use_cache=False))
    assert answers(model, num_beams=3).shape[0] == 3
    assert [site.units for site in find_sites(model, KINDS)] == [len(cut.keep) for cut in cuts]


def test_a_plan_that_keeps_everything_changes_no_bit(name):
    model = make_pair(name)
    sites = find_sites(model, KINDS)
    whole = [Cut(site.name, site.units, tuple(range(site.units)), None, None, None) for site in sites]
    before = model(**pair_batches()[0]).logits
    masked_and_cut(model, sites, whole)
    assert torch.equal(model(**pair_batches()[0]).logits, before)


def test_two_cuts_after_each_other_keep_the_right_biases():
    model = make_pair("t5").double()
    sites = find_sites(model, KINDS)
    masked_and_cut(model, sites, [Cut(site.name, site.units, (0, 2, 3), None, None, None) for site in sites])
    again = find_sites(model, KINDS)
    cuts = [Cut(site.name, site.units, (1, 2)[: site.units - 1], None, None, None) for site in again]
    masked, cut = masked_and_cut(model, again, cuts)
    torch.testing.assert_close(cut, masked, rtol=0, atol=1e-12)
    assert model.encoder.block[0].layer[0].SelfAttention.kept == [2, 3]


@pytest.mark.parametrize("kind", ["attention", "cross_attention"])
@pytest.mark.parametrize("block", [0, 1])
def test_one_block_alone_can_lose_heads(name, kind, block):
    model = make_pair(name).double()
    sites = find_sites(model, KINDS)
    site = [one for one in sites if one.kind == kind and "decoder" in one.name][block]
    masked, cut = masked_and_cut(model, sites, [Cut(site.name, site.units, (1,), None, None, None)])
    torch.testing.assert_close(cut, masked, rtol=0, atol=1e-12)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(**pair_batches()[0]).logits, cut, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_sub_layers_go_and_the_cache_still_works(kind, tmp_path):
    model = make_pair("bart").double()
    sites = find_sites(model, KINDS)
    mine = [site for site in sites if site.kind == kind]
    masked, cut = masked_and_cut(
        model, sites, [Cut(site.name, site.units, (), None, None, None) for site in mine]
    )
    torch.testing.assert_close(cut, masked, rtol=0, atol=1e-12)
    assert torch.equal(answers(model), answers(model, use_cache=False))
    assert torch.equal(answers(model, num_beams=3), answers(model, num_beams=3, use_cache=False))
    loaded = saved_and_loaded(model, tmp_path / "out")
    torch.testing.assert_close(loaded(**pair_batches()[0]).logits, cut, rtol=0, atol=1e-12)


def saved_and_loaded(model, folder):
    save(folder, model, None, PrunePlan((), {}))
    return t.AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.quick_cases(2)
def test_a_saved_model_loads_with_its_uneven_sizes(name, tmp_path):
    model = make_pair(name)
    sites = find_sites(model, KINDS)
    masked_and_cut(model, sites, cuts_of(sites))
    loaded = saved_and_loaded(model, tmp_path / "out")
    assert torch.equal(loaded(**pair_batches()[0]).logits, model(**pair_batches()[0]).logits)
    assert torch.equal(answers(loaded), answers(model))
    again = saved_and_loaded(loaded, tmp_path / "again")  # and can be cut and saved once more
    assert torch.equal(again(**pair_batches()[0]).logits, model(**pair_batches()[0]).logits)


def test_equal_widths_need_no_remote_code(name, tmp_path):
    model = make_pair(name)
    sites = find_sites(model, ["mlp"])
    masked_and_cut(model, sites, [Cut(site.name, site.units, (0, 3, 5), None, None, None) for site in sites])
    save(tmp_path / "out", model, None, PrunePlan((), {}))
    loaded = t.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert not (tmp_path / "out" / "modeling_pruned.py").exists()
    assert torch.equal(loaded(**pair_batches()[0]).logits, model(**pair_batches()[0]).logits)


def test_a_statistic_counts_the_tokens_of_its_own_stack(name):
    model, batches = make_pair(name), pair_batches()
    sites = find_sites(model, KINDS)
    found = collect(model, sites, batches, {"input_mean", "block_tokens"})
    seen: dict[str, list] = {site.name: [] for site in sites}
    for batch in batches:
        for row in range(3):  # each example alone, without its padding
            shown = int(batch["attention_mask"][row].sum()), int((batch["labels"][row] != -100).sum())
            ids, labels = batch["input_ids"][row : row + 1], batch["labels"][row : row + 1]
            one = {"input_ids": ids[:, : shown[0]], "labels": labels[:, : shown[1]]}
            handles = [
                model.get_submodule(site.consumers[0].module).register_forward_pre_hook(
                    lambda module, inputs, site=site: seen[site.name].append(inputs[0].detach()[0])
                )
                for site in sites
            ]
            with torch.no_grad():
                model(**inputs_of(model, one))
            for handle in handles:
                handle.remove()
    for site in sites:
        tokens = torch.cat(seen[site.name])
        wanted = 36 if "decoder" in site.name else 56
        assert len(tokens) == found[site.name]["block_tokens"] == wanted
        torch.testing.assert_close(
            found[site.name]["input_mean"].float(), tokens.mean(0), rtol=1e-4, atol=1e-5
        )


def test_gradients_reach_both_stacks(name):
    model = make_pair(name)
    sites = find_sites(model, KINDS)
    found = collect(model, sites, pair_batches(), {"taylor_first"})
    assert all(stat["taylor_first"].gt(0).any() for stat in found.values())


def test_counts_are_of_both_stacks(name):
    model = make_pair(name)
    blocks = [
        part.numel() for path, part in model.named_parameters() if "layers." in path or "block." in path
    ]
    assert count_parameters(model, find_sites(model, KINDS))["blocks"] == sum(blocks)


def test_what_cannot_be_is_refused():
    model = make_pair("bart")
    with pytest.raises(ValueError, match=r"this bart has no 'block' whose units can go"):
        find_sites(model, ["block"])
    with pytest.raises(ValueError, match="one stack of blocks, and a bart has two"), walking(model, []):
        pass
    with pytest.raises(ValueError, match="a BartForCausalLM is not pruned here.*sequence_to_sequence"):
        find_sites(t.BartForCausalLM(t.BartConfig(**BART)))
    with pytest.raises(ValueError, match="expected labels in every batch"):
        collect(model, find_sites(model), [{"input_ids": torch.ones(1, 3).long()}], {"input_mean"})
    t5 = t.T5ForConditionalGeneration(t.T5Config(**T5))
    site = next(one for one in find_sites(t5, ["attention"]))
    with pytest.raises(ValueError, match="attention"):
        apply(PrunePlan((Cut(site.name, 4, (), None, None, None),), {}), [site], t5)
