"""Time decoding with routed MLPs against the dense model, and the MLP's kernel against a smaller dense MLP.

    python experiments/benchmarks/routed_decode.py           # a random Llama of 0.65 B, then LLaMA-7B's MLP
    python experiments/benchmarks/routed_decode.py --layers 2 --tokens 4 --rounds 2       # a quick look
    python experiments/benchmarks/routed_decode.py --device cuda --shape llama2-7b --dtypes bfloat16

One process; the dense and the routed model take turns, and medians are compared. Routers are random, their
biases set so that the asked share of experts is active on the prompt. `bandwidth`: bytes of the weights that
a token reads, per second, over what a copy of a GiB reaches on the device. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cfsp.model.find_sites import find_sites
from cfsp.model.modeling_routed import RoutedMLP, kernels_for, routed_mlps
from cfsp.model.parameter_count import site_parameters
from cfsp.plans.routes import layer_paths

SIZE = 32
SHAPES = {
    "tinyllama": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12}
    | {"num_attention_heads": 32, "num_key_value_heads": 4},
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32},
}
"""Shape -> options of a Llama. TinyLlama's has 22 layers; 12 of them are 0.65 B parameters."""


def random_llama(shape: str, layers: int | None, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Return a Llama of 32,000 words with random weights. layers: None: as the shape says."""
    options = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, dtype=dtype, **options)
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def routed_copy(model: LlamaForCausalLM, active: float, compiled: bool) -> LlamaForCausalLM:
    """Return a routed copy in which about this share of the experts is active."""
    made = copy.deepcopy(model)
    for site in find_sites(made):
        options = {"inputs": made.config.hidden_size, "experts": site.units // SIZE, "size": SIZE}
        router = {"class": "LearnedRouter", **options}
        routed = RoutedMLP.install(made, *layer_paths(site), router, compiled=compiled)
        last = routed.router.last

        def settle(module: nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
            if module.training:  # on the prompt
                module.bias -= logits.float().quantile(1 - active).to(logits.dtype)
                return logits - logits.float().quantile(1 - active).to(logits.dtype)
            return logits

        last.bias.zero_()
        last.train()
        last.register_forward_hook(settle)
    made(input_ids=prompt(made))
    return made.eval()


def prompt(model: LlamaForCausalLM) -> torch.Tensor:
    """[1, 64]"""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 32000, (1, 64), generator=generator).to(model.device)


def clock(device: torch.device | str) -> float:
    """Return the time in seconds, once the device has done all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def decode_seconds(model: LlamaForCausalLM, tokens: int) -> float:
    """Return the seconds of a token after the first, through `generate`."""
    ids, seconds = prompt(model), []
    for new in (1, 1 + tokens):
        start = clock(model.device)
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        seconds.append(clock(model.device) - start)
    return (seconds[1] - seconds[0]) / tokens


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of what each work returns, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            value = work()
            if number:
                found[name].append(value)
    return {name: median(values) for name, values in found.items()}


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second that copying a GiB reads and writes, the best of five."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        start = clock(device)
        target.copy_(source)
        seconds.append(clock(device) - start)
    return 2 * source.numel() / min(seconds)


def bytes_of_a_token(model: LlamaForCausalLM, active: float) -> float:
    """Return the bytes of the weights that a token reads: all but inactive neurons and embeddings."""
    routed = site_parameters(model, [site for site in find_sites(model) if site.units_are_neurons])
    total = sum(one.numel() for one in model.parameters()) - model.get_input_embeddings().weight.numel()
    return (total - (1 - active) * routed) * model.dtype.itemsize


def measure_decoding(options: argparse.Namespace, dtype: torch.dtype) -> None:
    dense = random_llama(options.shape, options.layers, dtype, options.device)
    models = {"dense": dense}
    on_cpu = options.device == "cpu"
    for active in (0.5, 0.2):
        for name, compiled in (("C++", True), ("PyTorch", False)) if on_cpu else (("Triton", True),):
            models[f"{active:.0%} active, {name}"] = routed_copy(dense, active, compiled)
    works = {
        name: lambda model=model: decode_seconds(model, options.tokens) for name, model in models.items()
    }
    found, bandwidth = in_turns(works, options.rounds), copy_bandwidth(options.device)
    for name, seconds in found.items():
        parts = [one.chosen.float().mean() for one in routed_mlps(models[name]).values()]
        share = float(sum(parts) / len(parts)) if parts else 1.0
        used = bytes_of_a_token(dense, share) / seconds / bandwidth
        print(
            f"decode {str(dtype)[6:]:9} {name:22} active {share:5.0%} {1000 * seconds:8.1f} ms "
            f"{seconds / found['dense']:6.2f} bandwidth {used:4.0%}"
        )


@torch.inference_mode()
def measure_kernel(device: str, dtype: torch.dtype, active: float, rounds: int) -> None:
    """Time the MLP of LLaMA-7B. Several layers in turn, so that no cache holds their weights."""
    hidden, width, copies = 4096, 11008, 3
    made = {"device": device, "dtype": dtype}
    weights = [[torch.randn(width, hidden, **made) for _ in range(3)] for _ in range(copies)]
    downs = [down.t().contiguous() for _, _, down in weights]  # as in a dense model: [hidden, neurons]
    chosen = torch.zeros(width // SIZE, dtype=torch.bool)
    chosen[torch.randperm(width // SIZE)[: round(active * width / SIZE)]] = True
    left = int(chosen.sum()) * SIZE
    small = [[one[:left].clone() for one in (gate, up)] for gate, up, _ in weights]
    small_downs = [down[:, :left].contiguous() for down in downs]
    x, chosen = torch.randn(1, hidden, **made), chosen.to(device)
    works = {
        "dense": timed(device, lambda n: mlp(x, *weights[n][:2], downs[n]), copies),
        "smaller dense": timed(device, lambda n: mlp(x, *small[n], small_downs[n]), copies),
    }
    for name, compiled in (("C++" if device == "cpu" else "Triton", True), ("PyTorch", False)):
        kernels = kernels_for(device, dtype, compiled, SIZE)
        run = timed(device, lambda n, own=kernels: routed_mlp(x, *weights[n], own, chosen), copies)
        works[f"routed, {name}"] = run
    found = in_turns(works, rounds)
    for name, seconds in found.items():
        told = f"{1000 * seconds:7.1f} ms {seconds / found['smaller dense']:6.2f} of the smaller"
        print(f"MLP {str(dtype)[6:]:9} {active:.0%} {name:16} {told}")


def mlp(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def routed_mlp(x, gate, up, down, kernels, chosen) -> torch.Tensor:
    union = kernels.union(chosen)
    h = F.silu(kernels.rows(x, gate, union, SIZE, len(gate))) * kernels.rows(x, up, union, SIZE, len(up))
    return kernels.columns(h, down, union, SIZE)


def timed(device: str, work: Callable[[int], torch.Tensor], copies: int) -> Callable[[], float]:
    """Return a function that runs the work on every copy and returns the mean seconds."""

    def run() -> float:
        start = clock(device)
        for number in range(copies):
            work(number)
        return (clock(device) - start) / copies

    return run


def main() -> None:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    found.add_argument("--shape", choices=[*SHAPES], default="tinyllama")
    found.add_argument("--layers", type=int)
    found.add_argument("--tokens", type=int, default=12)
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--parts", nargs="+", choices=["decode", "kernel"], default=["decode", "kernel"])
    found.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    options = found.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for dtype in (getattr(torch, name) for name in options.dtypes):
        if "decode" in options.parts:
            measure_decoding(options, dtype)
        for active in (1.0, 0.5, 0.2) if "kernel" in options.parts else ():
            measure_kernel(options.device, dtype, active, options.rounds)


if __name__ == "__main__":
    main()
