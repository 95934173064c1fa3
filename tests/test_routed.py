"""Routed MLPs: every regime equals the dense computation times the mask, on every family."""

import copy
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from families import DECODERS, make, most_distinct, words
from random_routers import route
from torch.nn import functional as F
from torch.utils.cpp_extension import get_cxx_compiler

from cfsp.model import modeling_routed, routed_kernels
from cfsp.model.modeling_routed import kernels_for, neuron_rows, routed_mlps, uninstall
from cfsp.model.routed_kernels import CompiledKernels, TorchKernels
from cfsp.model.routers import LearnedRouter

needs_compiler = pytest.mark.skipif(
    shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler"
)
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KERNELS = [
    ("cpu", False),
    pytest.param(("cpu", True), marks=needs_compiler),
    pytest.param(("cuda", True), marks=needs_gpu),
]
"""Device, and whether kernels in C++ may be used: PyTorch, C++, Triton."""


def masked(model, ids):
    """The logits of a dense model whose consumers' inputs are multiplied by the routed model's masks."""
    dense = copy.deepcopy(model)
    routed = routed_mlps(dense)
    uninstall(dense)
    for one in routed.values():

        def choose(module, inputs, one=one):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            one.mask = one.router.choose(rows).repeat_interleave(one.router.size, 1)

        def mask(module, inputs, one=one):
            return (inputs[0] * one.mask.view(inputs[0].shape),)

        dense.get_submodule(one.producers[0]).register_forward_pre_hook(choose)
        dense.get_submodule(one.consumer).register_forward_pre_hook(mask)
    with torch.no_grad():
        return dense(input_ids=ids).logits


@pytest.mark.parametrize("use_compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("rows", [1, 3, 12])
@pytest.mark.parametrize("family", most_distinct(DECODERS))
def test_every_regime_equals_the_masked_dense_model(family, rows, use_compiled):
    model = route(make(family), compiled=use_compiled)
    ids = torch.randint(2, 61, (1, rows), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = model(input_ids=ids).logits
    expected = masked(model, ids)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    shares = torch.cat([one.shares() for one in routed_mlps(model).values()])
    assert 0.2 < shares.mean() < 0.8
    assert all((one.union is not None) == (rows <= one.few) for one in routed_mlps(model).values())


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which comes with torch for GPUs")
def test_the_kernels_of_a_gpu_compute_the_masked_product():
    """In Triton's interpreter, which shows that they are right and not that they compile."""
    script = Path(__file__).with_name("triton_interpreted.py")
    options = {"env": os.environ | {"TRITON_INTERPRET": "1"}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, str(script)], check=False, **options)
    assert done.stdout == "equal", done.stderr[-2000:]


def test_the_mask_matters():
    model, ids = route(make("llama")), torch.tensor([[5]])
    with torch.no_grad():
        routed = model(input_ids=ids).logits
        uninstall(model)
        assert not torch.allclose(routed, model(input_ids=ids).logits, rtol=0.1)


@pytest.mark.parametrize("where", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("runs", [1, 2])
def test_kernels_equal_the_masked_product(dtype, rows, runs, where):
    torch.manual_seed(0)
    size, experts, inputs, tolerance = 8, 9, 70, 1e-5 if dtype == torch.float32 else 2e-2
    device, use_compiled = where
    weight = torch.randn(runs * size * experts, inputs).to(device, dtype)
    x, chosen = torch.randn(rows, inputs).to(device, dtype), torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1]).bool()
    kernels, chosen = kernels_for(device, dtype, use_compiled, size), chosen.to(device)
    union = kernels.union(chosen)
    found = kernels.rows(x, weight, union, size, size * experts)
    mask = chosen.repeat_interleave(size).repeat(runs)
    expected = (x.float() @ weight.float().t()) * mask
    assert F.mse_loss(found.float(), expected).sqrt() < tolerance * expected.std()
    h = torch.randn(rows, size * experts).to(device, dtype)
    weight = weight[: size * experts]
    found = kernels.columns(h, weight, union, size)
    expected = (h.float() * chosen.repeat_interleave(size)) @ weight.float()
    assert F.mse_loss(found.float(), expected).sqrt() < tolerance * expected.std()


@pytest.mark.parametrize("where", KERNELS)
@pytest.mark.parametrize("chosen", [torch.zeros(5), torch.ones(5)])
def test_no_expert_and_all_experts(chosen, where):
    device, use_compiled = where
    kernels, chosen = kernels_for(device, torch.float32, use_compiled, 4), chosen.to(device)
    weight, h = torch.randn(20, 6, device=device), torch.randn(1, 20, device=device)
    found = kernels.columns(h, weight, kernels.union(chosen.bool()), 4)
    assert torch.allclose(found, h @ weight * chosen[0], atol=1e-4)
    found = kernels.rows(torch.ones(1, 6, device=device), weight, kernels.union(chosen.bool()), 4, 20)
    assert torch.allclose(found, weight.sum(1) * chosen[0], atol=1e-4)


@needs_compiler
def test_a_compiler_makes_kernels():
    """Otherwise the tests of compiled kernels would try PyTorch's."""
    assert isinstance(kernels_for("cpu", torch.float32, True, 4), CompiledKernels)


@needs_compiler
def test_inputs_and_weights_of_two_types_are_refused():
    kernels = kernels_for("cpu", torch.bfloat16, True, 4)
    union = kernels.union(torch.ones(5).bool())
    with pytest.raises(RuntimeError, match=r"inputs of torch.bfloat16 and weights of torch.float32"):
        kernels.columns(torch.randn(1, 20).bfloat16(), torch.randn(20, 6), union, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 6])
def test_generation_with_a_cache_equals_that_without(dtype, batch):
    model, tokenizer = route(make("llama").to(dtype)), words()
    ids = torch.randint(2, 61, (batch, 5), generator=torch.Generator().manual_seed(3))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    options |= {"output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
    with_cache = model.generate(ids, use_cache=True, **options)
    without = model.generate(ids, use_cache=False, **options)
    first = torch.stack(with_cache.logits[:2]).float(), torch.stack(without.logits[:2]).float()
    assert (first[0] - first[1]).abs().max() < (1e-3 if dtype == torch.float32 else 0.1) * first[1].std()
    if dtype == torch.float32:
        assert torch.equal(with_cache.sequences, without.sequences)


def test_there_is_one_copy_of_the_weights():
    model = route(make("llama"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.inference_mode():
        model(input_ids=torch.tensor([[3]]))
    layer = model.model.layers[0].mlp.down_proj
    assert neuron_rows(layer, True).data_ptr() == layer.weight.data_ptr()
    assert neuron_rows(layer, True).is_contiguous()
    assert not layer.weight.is_contiguous()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model(input_ids=torch.tensor([[3]])).logits.sum().backward()  # still a parameter that learns
    assert layer.weight.grad is not None


def test_a_copy_of_a_routed_model_is_one_of_its_own():
    model, ids = route(make("llama")), torch.tensor([[3, 4]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        copied = copy.deepcopy(model)
        for one in routed_mlps(model).values():
            one.router.last.bias.data.fill_(-1e4)
        assert torch.equal(copied(input_ids=ids).logits, expected)
        assert not torch.allclose(model(input_ids=ids).logits, expected)


def test_a_step_with_gradients_is_dense_and_learns():
    model = route(make("llama"))
    model(input_ids=torch.tensor([[7]])).logits.sum().backward()
    one = routed_mlps(model)["model.layers.0.mlp.routed"]
    assert one.union is None
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    closed = ~one.chosen.repeat_interleave(4, 1)[0]
    assert (gradient[:, closed] == 0).all()
    assert (gradient[:, ~closed] != 0).any()


def test_an_expert_size_that_does_not_divide_is_refused():
    model = make("llama")
    with pytest.raises(ValueError, match="experts of 7 neurons; expected a size that divides 40"):
        route(model, size=7)


def test_a_missing_compiler_is_told_once_and_pytorch_takes_over(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no_such_compiler")
    routed_kernels.compiled.cache_clear()
    modeling_routed.kernels_for.cache_clear()
    try:
        for _ in range(2):
            assert isinstance(kernels_for("cpu", torch.float32, True, 4), TorchKernels)
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "run in PyTorch, not in C++" in err
        assert "no_such_compiler" in err
    finally:
        monkeypatch.undo()
        routed_kernels.compiled.cache_clear()
        modeling_routed.kernels_for.cache_clear()


def test_a_router_of_more_experts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="takes 9 of 8 experts; expected 1 to 8"):
        LearnedRouter(4, 8, 2, top=9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoding_step_on_a_gpu_is_captured_in_a_graph(dtype):
    model = route(make("llama").to(dtype)).cuda()
    mlp, x = model.model.layers[0].mlp, torch.randn(1, 1, 32, device="cuda", dtype=dtype)
    with torch.no_grad():
        expected = mlp(x.expand(1, 8, 32))[:, :1]  # many rows: dense times mask
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            mlp(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = mlp(x)
        graph.replay()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
