"""Time decoding with routed MLPs against the dense model, and the MLP's kernel against a smaller dense MLP.

    python experiments/benchmarks/routed_decode.py           # a random Llama of 0.65 B, then LLaMA-7B's MLP
    python experiments/benchmarks/routed_decode.py --layers 2 --tokens 4 --rounds 2       # a quick look

One process; the dense and the routed model take turns, and medians are compared. Routers are random, their
biases set so that the asked share of experts is active on the prompt. Run it on an idle machine.
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
from cfsp.plans.routes import layer_paths

SIZE = 32


def random_llama(layers: int, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a Llama of TinyLlama's width. [32,000 words, 2048 channels, 5632 neurons]"""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
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
    made(input_ids=prompt())
    return made.eval()


def prompt() -> torch.Tensor:
    return torch.randint(0, 32000, (1, 64), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def decode_seconds(model: LlamaForCausalLM, tokens: int) -> float:
    """Return the seconds of a token after the first, through `generate`."""
    seconds = []
    for new in (1, 1 + tokens):
        start = time.perf_counter()
        model.generate(prompt(), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        seconds.append(time.perf_counter() - start)
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


def measure_decoding(dtype: torch.dtype, layers: int, tokens: int, rounds: int) -> None:
    dense = random_llama(layers, dtype)
    models = {"dense": dense}
    for active in (0.5, 0.2):
        for name, compiled in (("C++", True), ("PyTorch", False)):
            models[f"{active:.0%} active, {name}"] = routed_copy(dense, active, compiled)
    works = {name: lambda model=model: decode_seconds(model, tokens) for name, model in models.items()}
    found = in_turns(works, rounds)
    for name, seconds in found.items():
        parts = [one.chosen.float().mean() for one in routed_mlps(models[name]).values()]
        share = f"{float(sum(parts) / len(parts)):.0%}" if parts else "100%"
        ratio = seconds / found["dense"]
        print(f"decode {str(dtype)[6:]:9} {name:22} active {share:5} {1000 * seconds:8.1f} ms {ratio:6.2f}")


@torch.inference_mode()
def measure_kernel(dtype: torch.dtype, active: float, rounds: int) -> None:
    """Time the MLP of LLaMA-7B. Several layers in turn, so that no cache holds their weights."""
    hidden, width, copies = 4096, 11008, 3
    weights = [[torch.randn(width, hidden).to(dtype) for _ in range(3)] for _ in range(copies)]
    downs = [down.t().contiguous() for _, _, down in weights]  # as in a dense model: [hidden, neurons]
    chosen = torch.zeros(width // SIZE, dtype=torch.bool)
    chosen[torch.randperm(width // SIZE)[: round(active * width / SIZE)]] = True
    left = int(chosen.sum()) * SIZE
    small = [[one[:left].clone() for one in (gate, up)] for gate, up, _ in weights]
    small_downs = [down[:, :left].contiguous() for down in downs]
    x = torch.randn(1, hidden).to(dtype)
    works = {
        "dense": timed(lambda n: mlp(x, *weights[n][:2], downs[n]), copies),
        "smaller dense": timed(lambda n: mlp(x, *small[n], small_downs[n]), copies),
    }
    for name, compiled in (("routed, C++", True), ("routed, PyTorch", False)):
        kernels = kernels_for("cpu", dtype, compiled, SIZE)
        works[name] = timed(lambda n, own=kernels: routed_mlp(x, *weights[n], own, chosen), copies)
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


def timed(work: Callable[[int], torch.Tensor], copies: int) -> Callable[[], float]:
    """Return a function that runs the work on every copy and returns the mean seconds."""

    def run() -> float:
        start = time.perf_counter()
        for number in range(copies):
            work(number)
        return (time.perf_counter() - start) / copies

    return run


def main() -> None:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--layers", type=int, default=12)
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
            measure_decoding(dtype, options.layers, options.tokens, options.rounds)
        for active in (0.5, 0.2) if "kernel" in options.parts else ():
            measure_kernel(dtype, active, options.rounds)


if __name__ == "__main__":
    main()
