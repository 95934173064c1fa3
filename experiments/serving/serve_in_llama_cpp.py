"""Serve pruned models with llama.cpp: quality and speed beside the dense model, and what an export costs.

    python experiments/serving/serve_in_llama_cpp.py random  # a Llama of 0.4 B and half of it
    python experiments/serving/serve_in_llama_cpp.py pruned DENSE SMALLER --text FILE
    python experiments/serving/serve_in_llama_cpp.py export                # a Llama of 1.3 B parameters

Files are of type q8_0. Speeds are measured in turns, in one process; a ratio is the median of those of the
rounds, with their range. `pruned` compares perplexities of llama.cpp and of transformers in float32, on the
same tokens.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from llama_engine import Engine
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

import cfsp
from cfsp.checkpoints.load import REFERENCE
from cfsp.exports.gguf_file import GGUF
from cfsp.machine.memory import peak_bytes, reset_peak, resident_bytes
from cfsp.model.pass_cost import macs

PROMPT, NEW_TOKENS, WINDOW = 128, 32, 512
SMALL = LlamaConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=4032,
)
LARGE = LlamaConfig(
    hidden_size=2048,
    intermediate_size=6656,
    num_hidden_layers=26,
    num_attention_heads=16,
    num_key_value_heads=16,
    vocab_size=4032,
    dtype="bfloat16",
)


def random_model(config: LlamaConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32).eval()


def cut(model: PreTrainedModel, kept: float, change: float) -> cfsp.PrunePlan:
    """Keep a fraction of neurons and key/value groups, `change` more or less in every other block."""
    edits = []
    for site in cfsp.find_sites(model, ["mlp", "attention"]):
        block = int(site.name.split(".")[2])
        count = round(site.units * (kept + (change if block % 2 else -change)))
        if change and site.kind == "mlp":
            count -= 1  # odd widths, which the export pads
        edits.append(cfsp.Cut(site.name, site.units, tuple(range(count))))
    plan = cfsp.PrunePlan(tuple(edits))
    cfsp.apply(plan, model)
    return plan


def random_files(folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """Write the dense model and two halves of it. Returns name -> file, and name -> MACs of a token."""
    files, costs = {}, {}
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    for name in ("dense", "half, blocks alike", "half, uneven"):
        model = random_model(SMALL)
        plan = cfsp.PrunePlan(()) if name == "dense" else cut(model, 0.5, 0.25 if "uneven" in name else 0)
        costs[name] = macs(model, PROMPT) / PROMPT
        cfsp.save(folder / name, model, tokenizer, plan)
        files[name] = exported(folder / name, folder / f"{name}.gguf")
    return files, costs


def exported(source: Path, target: Path) -> Path:
    GGUF(type="q8_0").export(source, target)
    return target


def speeds(files: dict[str, Path], rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Return name -> prefill and decode -> seconds of every round, the files in turns."""
    engines = {name: Engine(path, threads=threads) for name, path in files.items()}
    found = {name: {"prefill": [], "decode": []} for name in files}
    prompt = np.random.default_rng(0).integers(100, 4000, PROMPT).tolist()
    for engine in engines.values():
        engine.seconds(prompt, 4)  # warm
    for turn in range(rounds):
        for name in [*engines][:: 1 if turn % 2 else -1]:
            for stage, taken in zip(
                ("prefill", "decode"), engines[name].seconds(prompt, NEW_TOKENS), strict=True
            ):
                found[name][stage].append(taken)
    return found


def rates(found: dict[str, dict[str, list[float]]], name: str) -> list[str]:
    """Return tokens a second and times dense, of prefill and of decode, as cells of a table."""
    cells = []
    for stage, tokens in (("prefill", PROMPT), ("decode", NEW_TOKENS)):
        taken = found[name][stage]
        ratios = [a / b for a, b in zip(found["dense"][stage], taken, strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if name != "dense" else ""
        cells += [f"{tokens / median(taken):.1f}", f"{median(ratios):.2f}{spread}"]
    return cells


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def header(*names: str) -> None:
    row(*names)
    row(*["---"] * len(names))


SPEED = ("prefill, tokens/s", "times dense", "decode, tokens/s", "times dense")


def measure_random(options: argparse.Namespace, folder: Path) -> None:
    files, costs = random_files(folder)
    found = speeds(files, options.rounds, options.threads)
    header("model", "file, MB", "MACs, times fewer", *SPEED)
    for name, path in files.items():
        row(
            name, round(path.stat().st_size / 1e6), f"{costs['dense'] / costs[name]:.2f}", *rates(found, name)
        )


def measure_pruned(options: argparse.Namespace, folder: Path) -> None:
    sources = {"dense": options.dense, "smaller": options.smaller}
    files = {name: exported(path, folder / f"{name}.gguf") for name, path in sources.items()}
    tokenizer = AutoTokenizer.from_pretrained(options.dense)
    ids = tokenizer(options.text.read_text(), return_tensors="np")["input_ids"][0]
    windows = ids[: options.windows * WINDOW].reshape(-1, WINDOW)
    found = speeds(files, options.rounds, options.threads)
    header("model", "file, MB", "perplexity, transformers", "llama.cpp, f32", "llama.cpp, q8_0", *SPEED)
    for name, path in files.items():
        exact = folder / f"{name}-f32.gguf"
        GGUF(type="f32").export(sources[name], exact)
        values = perplexities(sources[name], [exact, path], windows)
        size = round(path.stat().st_size / 1e6)
        row(name, size, *(f"{value:.3f}" for value in values), *rates(found, name))


@torch.no_grad()
def perplexities(source: Path, files: list[Path], windows: np.ndarray) -> list[float]:
    """Return the perplexity of the folder in transformers, in float32, and of files in llama.cpp."""
    model, _ = cfsp.load(str(source), dtype="float32")
    found = [perplexity(lambda ids: model(torch.tensor([ids])).logits[0], windows)]
    return found + [perplexity(Engine(path, WINDOW).logits, windows) for path in files]


def perplexity(read: Callable[[list[int]], torch.Tensor | np.ndarray], windows: np.ndarray) -> float:
    """read: tokens -> logits of a next token after each. [tokens, vocabulary]"""
    losses = [
        torch.nn.functional.cross_entropy(
            torch.as_tensor(read(window.tolist()))[:-1], torch.tensor(window[1:])
        )
        for window in windows
    ]
    return math.exp(float(torch.stack(losses).mean()))


def measure_export(_options: argparse.Namespace, folder: Path) -> None:
    model = random_model(LARGE)
    plan, parameters = cut(model, 0.875, 0.125), model.num_parameters()
    cfsp.save(folder / "model", model, AutoTokenizer.from_pretrained(REFERENCE), plan)
    size = sum(file.stat().st_size for file in (folder / "model").iterdir())
    del model
    header("export", "parameters", "folder, MB", "seconds", "memory above before, times the folder")
    for kind in ("gguf", "padded", "decilm"):
        seconds, memory = in_a_process(kind, folder)
        row(kind, f"{parameters / 1e9:.2f} B", round(size / 1e6), f"{seconds:.1f}", f"{memory / size:.2f}")


def in_a_process(kind: str, folder: Path) -> tuple[float, float]:
    """Export in a fresh process. Returns seconds and the growth of its resident memory, in bytes."""
    command = [sys.executable, __file__, "one_export", kind, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def one_export(options: argparse.Namespace, _folder: Path) -> None:
    """Export a model in this process. Prints seconds and the growth of its resident memory, in bytes."""
    from cfsp.cli.export import main as export

    reset_peak("cpu")
    before, start = resident_bytes(), time.perf_counter()
    typed = ["--type", "q8_0"] if options.kind == "gguf" else []
    export([options.kind, str(options.folder / "model"), str(options.folder / options.kind), *typed])
    print(time.perf_counter() - start, max(peak_bytes(torch.device("cpu")).values()) - before)


WORK = {
    "random": measure_random,
    "pruned": measure_pruned,
    "export": measure_export,
    "one_export": one_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    made = {name: parts.add_parser(name) for name in WORK}
    for part in made.values():
        part.add_argument("--rounds", type=int, default=7)
        part.add_argument("--threads", type=int, default=2)
    made["pruned"].add_argument("dense", type=Path)
    made["pruned"].add_argument("smaller", type=Path)
    made["pruned"].add_argument("--text", type=Path, required=True)
    made["pruned"].add_argument("--windows", type=int, default=16)
    made["one_export"].add_argument("kind")
    made["one_export"].add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        WORK[options.part](options, Path(folder))


if __name__ == "__main__":
    main()
