"""The same on a GPU."""

import pytest
import torch
from families import all_kinds, batches, make

import cfsp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("schedule", ["one_shot", "blockwise", "iterative"])
@pytest.mark.parametrize("criterion", ["magnitude", "wanda_sp", "flap", "cfsp", "taylor"])
def test_plan_and_cut_agree_with_the_cpu(criterion, schedule):
    cpu, gpu = make("llama"), make("llama").cuda()
    options = {"kinds": ["mlp", "attention"], "criterion": criterion, "compensation": "mean", "sparsity": 0.4}
    options |= {"schedule": schedule}
    plans = [cfsp.plan(model, batches(), **options) for model in (cpu, gpu)]
    assert [cut.keep for cut in plans[0].edits] == [cut.keep for cut in plans[1].edits]
    for plan, model in zip(plans, (cpu, gpu), strict=True):
        cfsp.apply(plan, model)
    ids = batches(count=1)[0]["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(gpu(ids.cuda()).logits.cpu(), cpu(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_sites_that_share_weights_too(criterion):
    cpu, gpu = make("llama"), make("llama").cuda()
    options = {"criterion": criterion, "allocator": "global_rank", "sparsity": 0.4, "schedule": "iterative"}
    plans = [cfsp.plan(model, batches(), kinds=all_kinds(model), **options) for model in (cpu, gpu)]
    assert [cut.keep for cut in plans[0].edits] == [cut.keep for cut in plans[1].edits]
    for plan, model in zip(plans, (cpu, gpu), strict=True):
        cfsp.apply(plan, model)
    assert cpu.num_parameters() == gpu.num_parameters()


@pytest.mark.parametrize("target", ["own", "residual"])
def test_least_squares_agree_with_the_cpu(target):
    cpu, gpu = make("llama"), make("llama").cuda()
    options = {"criterion": "obs", "compensation": "least_squares", "allocator": "error_curves"}
    options |= {"schedule": "blockwise", "target": target, "sparsity": 0.4}
    plans = [cfsp.plan(model, batches(count=8, size=2, tokens=24), **options) for model in (cpu, gpu)]
    assert [cut.keep for cut in plans[0].edits] == [cut.keep for cut in plans[1].edits]
    for one, other in zip(*(plan.edits for plan in plans), strict=True):
        torch.testing.assert_close(one.consumer, other.consumer, rtol=1e-2, atol=1e-3)
