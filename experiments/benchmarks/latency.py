"""Measure whether structured pruning makes a model faster, by as much as its MACs shrink.

A Llama with random weights loses half of its MLP neurons and attention heads; prefill and decode are timed
against the dense model, in turns, and compared with the ratio of MACs. Then MLP widths are timed that are
multiples of smaller and smaller numbers.

    python experiments/benchmarks/latency.py [--device cuda --dtype bfloat16 --shape llama2-7b]
"""

from __future__ import annotations

import argparse
import copy
import platform
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import cfsp
from cfsp.evaluation.latency import Latency, random_tokens
from cfsp.plans.plan import Cut, PrunePlan

TABLE = Path(__file__).parents[2] / "results" / "tables" / "latency.md"
SHAPES = {
    "267m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
NEW_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", default="267m", choices=SHAPES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.device(options.device):
        torch.set_default_dtype(getattr(torch, options.dtype))
        dense = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **SHAPES[options.shape])).eval()
        torch.set_default_dtype(torch.float32)
    width, heads = dense.config.intermediate_size // 2, dense.config.num_key_value_heads // 2
    print(f"{dense.num_parameters() / 1e6:.0f} M parameters")
    rows = compare(dense, cut(dense, width, heads), options, "half of MLP and attention")
    for narrower in (0, 1, 8, 16, 32, 64):
        less = cut(dense, width - narrower, dense.config.num_key_value_heads)
        rows += compare(dense, less, options, f"MLP alone, {width - narrower} neurons")
    table = pd.DataFrame(rows)
    print(table.to_string())
    write(table, dense, options)


def cut(dense: nn.Module, neurons: int, groups: int) -> nn.Module:
    """Return a copy with this many neurons and key/value groups in every block."""
    pruned = copy.deepcopy(dense)
    wanted = {"mlp": neurons, "attention": groups}
    sites = cfsp.find_sites(pruned, list(wanted))
    cfsp.apply(PrunePlan(tuple(Cut(s.name, s.units, tuple(range(wanted[s.kind]))) for s in sites)), pruned)
    return pruned


def compare(dense: nn.Module, pruned: nn.Module, options: argparse.Namespace, name: str) -> list[dict]:
    """Return a row per stage and batch."""
    latency = Latency(options.batches, [options.prompt], NEW_TOKENS, options.repeats, warmup=2)
    _, found = latency.run_pair(dense, pruned, None)
    rows = []
    for batch in options.batches:
        ids = random_tokens(dense, batch, options.prompt)
        ideal = [before / after for before, after in zip(macs(dense, ids), macs(pruned, ids), strict=True)]
        for stage, best in zip(("prefill", "decode"), ideal, strict=True):
            metric = found[f"{stage}_speedup/b{batch}xp{options.prompt}"]
            rows.append(
                {
                    "model": name,
                    "stage": stage,
                    "batch": batch,
                    "ms": f"{found[f'{stage}_ms/b{batch}xp{options.prompt}'].value:.1f}",
                    "speed-up": f"{metric.value:.2f} ({metric.spread[0]:.2f} to {metric.spread[1]:.2f})",
                    "MACs ratio": f"{best:.2f}",
                    "of the ideal": f"{metric.value / best:.0%}",
                }
            )
    return rows


@torch.no_grad()
def macs(model: nn.Module, ids: torch.Tensor) -> tuple[float, float]:
    """Return the MACs of what Latency times: prefill, and one token of every sequence after it."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as prefill:
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    with FlopCounterMode(display=False) as decode:
        model(input_ids=ids[:, :1], past_key_values=out.past_key_values, use_cache=True)
    model.set_attn_implementation("sdpa")
    return prefill.get_total_flops() / 2, decode.get_total_flops() / 2


def write(table: pd.DataFrame, dense: nn.Module, options: argparse.Namespace) -> None:
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    command = " ".join(
        ["python experiments/benchmarks/latency.py"]
        + [f"--{key} {getattr(options, key)}" for key in ("device", "dtype", "shape")]
    )
    where = gpu or f"{platform.machine()}, {torch.get_num_threads()} threads"
    text = (
        f"`{command}`\n\nA Llama of {dense.num_parameters() / 1e6:.0f} M parameters ({options.shape}), "
        f"random weights, {options.dtype}, {where}, torch {torch.__version__}, {options.prompt} prompt "
        f"tokens, {NEW_TOKENS} new ones. Medians of {options.repeats} rounds in turns with the dense model, "
        "in brackets the range of the rounds' ratios; ms per prompt or per token.\n\n"
        f"{table.to_markdown(index=False)}\n"
    )
    path = TABLE if options.shape == "267m" else TABLE.with_name(f"latency_{options.shape}.md")
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    main()
