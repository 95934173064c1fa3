"""Statistics: means over tokens, whatever the batches."""

import pytest
import torch
from families import batches, kinds_of, make

from cfsp.model.blocks import block_modules
from cfsp.model.find_sites import find_sites
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.surgery import apply
from cfsp.schedules.partly_cut import PartlyCut
from cfsp.statistics.block_distances import BlockAngular, BlockCosine
from cfsp.statistics.collect import STATISTICS, collect
from cfsp.statistics.inputs import InputSquareMean
from cfsp.statistics.moments import MOMENTS

HOMES = ("cfsp.statistics.inputs", "cfsp.statistics.block_distances")
VECTORS = {name for name, kind in STATISTICS.items() if kind.__module__ in HOMES}


def naive(model, sites, samples):
    """Every statistic in float64 from all activations kept in memory."""
    inputs = {site.name: [] for site in sites}
    blocks = {path: ([], []) for path in block_modules(model)}
    handles = []
    for site in sites:
        module = model.get_submodule(site.consumers[0].module)
        keep = inputs[site.name]
        handles.append(module.register_forward_pre_hook(lambda m, args, keep=keep: keep.append(args[0])))
    for path, (before, after) in blocks.items():

        def hook(module, args, kwargs, output, before=before, after=after):
            before.append(args[0] if args else kwargs["hidden_states"])
            after.append(output[0] if isinstance(output, tuple) else output)

        handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    for handle in handles:
        handle.remove()
    mask = torch.cat([sample["attention_mask"].flatten() for sample in samples]).bool()

    def rows(tensors):
        return torch.cat([tensor.flatten(0, -2) for tensor in tensors])[mask].double()

    expected = {}
    for site in sites:
        x = rows(inputs[site.name])
        before, after = (rows(states) for states in blocks[site.blocks[0]])
        cos = (before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1)
        expected[site.name] = {
            "input_mean": x.mean(0),
            "input_sq_mean": x.square().mean(0),
            "input_var": x.var(0, correction=0),
            "block_angular": (cos.arccos() / torch.pi).mean(),
            "block_cosine": (1 - cos).mean(),
            "block_mse": (before - after).square().mean(),
            "block_mae": (before - after).abs().mean(),
            "block_tokens": torch.tensor(float(len(cos))).double(),
        }
    return expected


@pytest.mark.quick_cases(6)
def test_equal_a_naive_float64_computation(model):
    sites, samples = find_sites(model, kinds_of(model)), batches(padded=True)
    expected = naive(model, sites, samples)
    found = collect(model, sites, samples, VECTORS)
    for site in sites:
        for name in VECTORS - {"input_var_released"}:  # which depends on the order of samples
            torch.testing.assert_close(
                found[site.name][name],
                expected[site.name][name],
                rtol=1e-4,
                atol=1e-6,
                msg=f"{site.name} {name}",
            )


def test_do_not_depend_on_batching():
    model = make("llama")
    sites, samples = find_sites(model, kinds_of(model)), batches(count=6, padded=True)
    together = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
    one, other = collect(model, sites, samples, VECTORS), collect(model, sites, [together], VECTORS)
    for site in sites:
        for name in VECTORS:
            torch.testing.assert_close(one[site.name][name], other[site.name][name], rtol=1e-5, atol=1e-8)


def test_do_not_grow_with_the_number_of_samples():
    model = make("llama")
    sites, samples = find_sites(model, kinds_of(model)), batches()
    once, twice = (collect(model, sites, samples * times, VECTORS) for times in (1, 2))
    for name in VECTORS - {"block_tokens", "input_var_released"}:
        torch.testing.assert_close(once[sites[0].name][name], twice[sites[0].name][name])
    assert twice[sites[0].name]["block_tokens"] == 2 * once[sites[0].name]["block_tokens"] == 2 * 3 * 2 * 12


def test_variance_survives_a_large_mean():
    model = make("opt")
    site = find_sites(model)[0]
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias.fill_(1000.0)
    (expected,) = naive(model, [site], samples := batches()).values()
    found = collect(model, [site], samples, {"input_var"})[site.name]["input_var"]
    torch.testing.assert_close(found, expected["input_var"], rtol=1e-3, atol=1e-6)


def test_padded_tokens_do_not_count():
    model = make("llama")
    sites, samples = find_sites(model, kinds_of(model)), batches(padded=True)
    changed = [dict(sample) for sample in samples]
    for sample in changed:
        sample["input_ids"] = sample["input_ids"].where(sample["attention_mask"].bool(), 3)
    one, other = (collect(model, sites, which, VECTORS) for which in (samples, changed))
    assert torch.equal(one[sites[0].name]["input_mean"], other[sites[0].name]["input_mean"])


def test_one_pass_whatever_is_asked():
    model = make("llama")
    calls = []
    handle = model.model.register_forward_hook(lambda *_: calls.append(1))
    collect(model, find_sites(model, kinds_of(model)), batches(count=4), VECTORS)
    handle.remove()
    assert len(calls) == 4


def test_model_is_left_as_it_was():
    model = make("llama").train()
    collect(model, find_sites(model), batches(), {"input_mean", "block_mse"})
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nan_names_block_and_batch():
    model = make("llama")
    samples = batches(count=3)
    for sample in samples:
        sample["input_ids"] = sample["input_ids"].clamp(max=50)
    samples[2]["input_ids"][0, 0] = 60
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = float("nan")
    with pytest.raises(
        ValueError, match=r"input_mean is NaN or infinite at model.layers.0.mlp.* at calibration batch 2"
    ):
        collect(model, find_sites(model), samples, {"input_mean"})


def test_infinity_is_found_too():
    model = make("opt")
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.bias[3] = float("inf")
    with pytest.raises(ValueError, match=r"input_sq_mean is NaN or infinite at .*layers.1.fc2 .*batch 0"):
        collect(model, find_sites(model), batches(), {"input_sq_mean"})


def test_distances_of_unchanged_and_scaled_tokens_are_finite_and_small():
    before = torch.randn(5000, 64, generator=torch.manual_seed(0))
    for after in (before, 3 * before):
        for statistic in (BlockAngular, BlockCosine):
            distance = statistic.distance(before, after)
            assert distance.isfinite().all()
            assert (distance >= 0).all()
            assert distance.max() < 1e-3


def test_half_precision_states_are_summed_in_full():
    """100,000 times 0.1: bfloat16 sums would stop growing at 32."""
    statistic = InputSquareMean()
    states = torch.full((100_000, 2), 300.0, dtype=torch.bfloat16)
    for chunk in statistic.chunks(states):
        statistic.update(chunk)
    torch.testing.assert_close(statistic.result(), torch.full((2,), 300.0**2).double())
    statistic = InputSquareMean()
    for chunk in statistic.chunks(states.half()):
        statistic.update(chunk)  # 300^2 overflows float16
    torch.testing.assert_close(statistic.result(), torch.full((2,), 300.0**2).double())


def test_a_bfloat16_model_gives_nearly_the_same():
    full, half = make("llama"), make("llama").to(torch.bfloat16)
    sites, samples = find_sites(full, kinds_of(full)), batches(padded=True)
    one, other = (collect(model, sites, samples, VECTORS) for model in (full, half))
    for name in VECTORS:
        assert other[sites[0].name][name].dtype == torch.float64
        torch.testing.assert_close(one[sites[0].name][name], other[sites[0].name][name], rtol=0.1, atol=0.05)


def test_modules_in_eval_stay_in_eval():
    model = make("llama").train()
    model.model.layers[0].eval()
    collect(model, find_sites(model), batches(), {"input_mean"})
    assert model.training
    assert not model.model.layers[0].mlp.training


def test_bad_calls():
    model = make("llama")
    with pytest.raises(KeyError, match="expected a set of .*input_mean, "):
        collect(model, find_sites(model), batches(), {"nonesuch"})
    with pytest.raises(KeyError, match="needs='input_mean': expected a set of"):
        collect(model, find_sites(model), batches(), "input_mean")
    for wrong in (batches()[0], [torch.ones(2, 3)], [{"input_ids": [1, 2]}], [{"input_ids": torch.ones(3)}]):
        with pytest.raises(ValueError, match=r"calibration batch 0 is .* expected a dict with input_ids"):
            collect(model, find_sites(model), wrong, {"input_mean"})
    masked = batches()
    masked[1]["attention_mask"] = torch.zeros_like(masked[1]["attention_mask"])
    with pytest.raises(ValueError, match="calibration batch 1 masks every token"):
        collect(model, find_sites(model), masked, {"input_mean"})
    with pytest.raises(ValueError, match="no batches"):
        collect(model, find_sites(model), [], {"input_mean"})
    with pytest.raises(ValueError, match="seqlen=49: the model has 48 positions"):
        collect(model, find_sites(model), batches(tokens=49), {"input_mean"})


def test_released_fluctuation_tells_samples_apart_where_a_model_does_not():
    """OPT's MLP sees the tokens of a batch as one row."""
    model = make("opt")
    sites, needs = find_sites(model), {"input_var_released"}
    together = {key: torch.cat([sample[key] for sample in batches()]) for key in batches()[0]}
    one, other = collect(model, sites, batches(), needs), collect(model, sites, [together], needs)
    for site in sites:
        torch.testing.assert_close(one[site.name], other[site.name], rtol=1e-4, atol=1e-7)


def test_released_fluctuation_is_the_recursion_of_the_release():
    model = make("llama")
    site = find_sites(model)[0]
    samples = batches(count=4)
    rows = []
    hook = lambda module, inputs: rows.extend(inputs[0].unbind(0))  # noqa: E731
    handle = model.get_submodule(site.consumers[0].module).register_forward_pre_hook(hook)
    found = collect(model, [site], samples, {"input_var_released", "input_var"})[site.name]
    handle.remove()
    mean, fluctuation = torch.zeros(40), torch.zeros(40)
    for k, x in enumerate(rows):
        mean = (k * mean + x.mean(0)) / (k + 1)
        fluctuation = fluctuation * (k - 1) / k + ((x - mean) ** 2).sum(0) / (k + 1) if k else 0 * mean
    torch.testing.assert_close(found["input_var_released"].float(), fluctuation, rtol=1e-4, atol=1e-6)
    ratio = (found["input_var_released"] / (12 * found["input_var"])).median()
    assert 0.4 < ratio < 1  # too small while there are few samples
    one = collect(model, [site], [{"input_ids": samples[0]["input_ids"][:1]}], {"input_var_released"})
    assert not one[site.name]["input_var_released"].any()  # the first sample counts for nothing


@pytest.mark.parametrize("kind", ["mlp", "attention", "query_heads", "block"])
def test_what_is_left_of_a_statistic_is_that_of_the_cut_model(kind):
    """Every statistic that is known, so that a new one is tried too."""
    model, samples = make("llama"), batches(padded=True)
    sites = find_sites(model, [kind])
    names = {name for name, one in STATISTICS.items() if one.backward or all(map(one.modules, sites))}
    names -= {f"{name}_held_out" for name in MOMENTS.values()}  # of more samples than there are here
    if kind == "block":
        names -= {"output_gradient_moment"}  # a block has no single consumer
    cuts = [Cut(site.name, site.units, tuple(range(0, site.units, 2))) for site in sites]
    state = PartlyCut(model, sites, cuts)
    with state.gates():
        held = collect(model, sites, samples, names)
    left = {site.name: state.stat(site, held[site.name]) for site in state.sites}
    apply(PrunePlan(tuple(cuts)), sites, model)
    for site, now in zip(sites, find_sites(model, [kind]), strict=True):
        made = collect(model, [now], samples, names)[now.name]
        for name in names:
            torch.testing.assert_close(left[site.name][name], made[name], rtol=1e-3, atol=1e-6)
