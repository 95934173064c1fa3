"""`cfsp-compare`: two models side by side, at the terminal and as a page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from cfsp.bars import begin, lines, speak
from cfsp.checkpoints.describe import block_sizes
from cfsp.checkpoints.load import REFERENCE, load
from cfsp.checks import check_integer
from cfsp.cli.compare_records import are_records, compare_records
from cfsp.cli.early import from_hub
from cfsp.cli.exits import one_line_exits
from cfsp.cli.terminal import show_sections
from cfsp.data.texts import Files, Stdlib, Text
from cfsp.data.tokens import token_stream
from cfsp.evaluation.base import Evaluator, PairedEvaluator
from cfsp.evaluation.latency import Latency
from cfsp.evaluation.measure import measure, measure_pairs
from cfsp.evaluation.perplexity import Perplexity
from cfsp.evaluation.routed_shares import RoutedShares
from cfsp.evaluation.samples import Samples
from cfsp.evaluation.size import Size
from cfsp.model.blocks import max_positions
from cfsp.model.modeling_routed import routed_mlps
from cfsp.records.record import Metric
from cfsp.report.base import Section
from cfsp.report.page import page
from cfsp.report.pair import Side, pair_sections
from cfsp.report.paths import short_paths
from cfsp.running.plugins import import_plugins, look_here
from cfsp.storage.atomic import replacing
from cfsp.storage.cache import OFF

PROMPTS = ("The capital of France is", "Return a list of", "Once upon a time")
ROUTED_WINDOWS = 8
"""Windows of the text, at most, on which the used share of a routed model's units is measured."""

MEASURES = ("perplexity", "speed", "answers")

EXAMPLES = """
examples:
  cfsp-compare reference my/smaller_model
      the model that comes with this package, and a pruned one made of it
  cfsp-compare meta-llama/Meta-Llama-3-8B my/llama --device cuda --windows 40 -o compare.html
      a model of the hub; 40 windows of the text instead of all; a page to send on as well
  cfsp-compare my/flap my/cfsp --text my/texts/*.txt --window 1024 --skip speed
      two pruned models on a text of your own
  cfsp-compare my/base my/pruned --prompt 'Who wrote Faust?' --prompt 'def quicksort(' --new-tokens 80
  cfsp-compare results/records/a.json results/records/b.json
  cfsp-compare dense results/records/a.json
      two runs, or a run and its dense model, from the answers to single questions that records keep:
      McNemar's exact test, flip rate, paired intervals; nothing is measured again

Perplexity is that of `cfsp evaluation=perplexity`: windows of a text without overlap, lower is better.
The text is the test split of the documentation of Python's standard library unless --text gives one.
Of a routed model the share of the MLPs' units that a token uses is measured on the same text.
The models are timed in turns, so that other load on the machine affects both. Prompts go through the chat
template of a model that has one. Both models are in memory at the same time.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write the page; an error becomes one line and exit code 1."""
    options = parser().parse_args(arguments)
    logging.set_verbosity_error()
    with one_line_exits("cfsp-compare"):
        with lines("cfsp-compare", to_stderr=True):
            records = are_records(options.models)
            sections = compare_records(options.models) if records else compare_models(options)
        show_sections(sections)
        if options.output:
            title = f"{options.models[1].rstrip('/').rpartition('/')[2]}: compared"
            with replacing(options.output) as part:
                part.write_text(page(title, sections))
            print(options.output)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="cfsp-compare",
        description="Two models side by side: size, kept widths, perplexity, speed, what they say.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "models",
        nargs=2,
        metavar="MODEL",
        help="A and B: a saved model, a hub id or 'reference'; or two records, or 'dense' and one",
    )
    add("--text", nargs="+", metavar="FILE", help="files or folders of text to measure perplexity on")
    add("--window", type=int, metavar="N", help="tokens of a window (512, or the models' positions)")
    add("--windows", type=int, metavar="N", help="number of windows, spread evenly over the text (all)")
    add("--batch-size", type=int, default=8, metavar="N", help="windows at once (8)")
    add("--prompt", action="append", metavar="TEXT", help="what both answer; may be given several times")
    add("--new-tokens", type=int, default=40, metavar="N", help="tokens of an answer (40)")
    add("--skip", nargs="+", default=[], choices=MEASURES, help="leave out: perplexity, speed, answers")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (auto)")
    add("--plugin", action="append", default=[], metavar="MODULE", help="a module to import first")
    add("-o", "--output", type=Path, metavar="FILE", help="write a self-contained HTML page too")
    return made


def compare_models(options: argparse.Namespace) -> list[Section]:
    """Load and measure both models. Raises ValueError if they cannot be compared."""
    look_here()
    import_plugins(options.plugin)
    if options.text and "perplexity" not in options.skip:
        Files(options.text, column="text").read()  # a file that is not there is told before models load
    names = short_names(options.models)
    loaded: list[tuple[PreTrainedModel, PreTrainedTokenizerBase]] = []
    for name, path in zip(names, options.models, strict=True):
        announce(f"loading {name}{from_hub(path)}")
        loaded.append(load(path, device=options.device, dtype=options.dtype))
    evaluators, timers, samples = measures(options, loaded)
    for model, tokenizer in loaded:  # before anything costly
        for evaluator in (*evaluators, *timers):
            evaluator.protocol(model, tokenizer)
        if samples:
            samples.check(model, tokenizer)
    times: tuple[Mapping[str, Metric], ...] = ({}, {})
    if timers:
        announce("timing both in turns")
        times = measure_pairs(timers, loaded[0][0], loaded[1][0], loaded[0][1])
    sides = []
    for place, (name, path) in enumerate(zip(names, options.models, strict=True)):
        announce(f"measuring {name}")
        metrics = disk_metrics(path) | measure(evaluators, *loaded[place], OFF, name=name) | times[place]
        said = {} if samples is None else samples.say(*loaded[place])
        model = loaded[place][0]
        sides.append(Side(name, metrics, block_sizes(model), said, bool(routed_mlps(model))))
    return pair_sections(*sides)


def measures(
    options: argparse.Namespace, loaded: Sequence[tuple[PreTrainedModel, PreTrainedTokenizerBase]]
) -> tuple[list[Evaluator], list[PairedEvaluator], Samples | None]:
    """Return the evaluators that the options ask for, within the positions of both models."""
    check_integer("new-tokens", options.new_tokens, least=1)
    limits = [limit for model, _ in loaded if (limit := max_positions(model)) is not None]
    most = min(limits, default=1 << 20)
    evaluators: list[Evaluator] = [Size(context=min(512, most))]
    if "perplexity" not in options.skip:
        text = Files(options.text, column="text") if options.text else Stdlib("test")
        window = min(512, most) if options.window is None else options.window
        evaluators.append(Perplexity(text, window, options.batch_size, windows=options.windows))
        if any(routed_mlps(model) for model, _ in loaded):
            evaluators.append(routed_shares(text, min(window, 128), [tokenizer for _, tokenizer in loaded]))
    timers: list[PairedEvaluator] = []
    if "speed" not in options.skip:
        tokens = min(32, most // 2)
        prompt = min(128, most - tokens)
        timers.append(Latency(batch_sizes=[1], prompts=[prompt], new_tokens=tokens, repeats=5, warmup=1))
    prompts = options.prompt or [*PROMPTS]
    wanted = "answers" not in options.skip
    return evaluators, timers, Samples(prompts, options.new_tokens, chat=True) if wanted else None


def routed_shares(text: Text, window: int, tokenizers: Sequence[PreTrainedTokenizerBase]) -> RoutedShares:
    """Return what measures the used share of units, on as many windows as the text has, up to eight."""
    shortest = min(len(token_stream(text, tokenizer).ids) for tokenizer in tokenizers)
    return RoutedShares(text, window, max(1, min(ROUTED_WINDOWS, shortest // window)), batches=[1])


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, and more where two are alike; numbered where the whole paths are."""
    names = short_paths(paths)
    if len(set(paths)) == len(paths):
        return [names[path] for path in paths]
    return [f"{names[path]} ({place})" for place, path in enumerate(paths, start=1)]


def disk_metrics(path: str) -> dict[str, Metric]:
    """Return the size of the weights' files on disk; nothing if they are not found."""
    folder = REFERENCE if path == "reference" else Path(path)
    if not folder.is_dir():
        config = try_to_load_from_cache(path, "config.json")
        folder = Path(config).parent if isinstance(config, str) else folder
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    size = sum(file.stat().st_size for file in files)
    return {"disk_bytes": Metric(size, None, 1, "lower", {})} if files else {}


def announce(text: str) -> None:
    """Print one line about the current step, beside the progress bar or among the lines in its place."""
    if not begin(text):
        speak(f"cfsp-compare: {text}", to_stderr=True)


if __name__ == "__main__":
    main()
