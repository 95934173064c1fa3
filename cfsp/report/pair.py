"""Sections that compare two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import floor, log10

from cfsp.records.record import Metric
from cfsp.report.base import MISSING, Cell, Section, Table, number, word

FIGURES = {
    "parameters": ("parameters", 1, 0),
    "disk_bytes": ("size on disk, MB", 1e6, 1),
    "bytes_on_disk": ("weights in memory, MB", 1e6, 1),
    "active_share": ("MLP units that a token uses, %", 0.01, 1),
    "macs_per_token": ("multiplications per token, M", 1e6, 1),
    "gflops_per_token": ("of them in the blocks, with the units used, M", 2e6 / 2**30, 1),
    "perplexity": ("perplexity", 1, 2),
    "bits_per_byte": ("bits per byte", 1, 3),
    "prefill_ms": ("first token, ms", 1, 1),
    "decode_ms": ("each token after it, ms", 1, 1),
    "decode_tokens_per_s": ("tokens per second", 1, 1),
    "peak_mib": ("peak memory, MiB", 1, 0),
}
"""Metric name up to a slash -> name of the row, divisor for its unit, and least digits after the point."""

SIZES = {"width": "MLP neurons", "heads": "query heads", "groups": "key/value groups"}


@dataclass(frozen=True)
class Side:
    """One of two models: its name, metrics, units of every block, answers to prompts, if it is routed."""

    name: str
    metrics: Mapping[str, Metric]
    blocks: Sequence[Mapping[str, int]]
    said: Mapping[str, str]
    routed: bool = False


def pair_sections(one: Side, other: Side) -> list[Section]:
    """Return the sections that compare two models, for a page or a terminal."""
    intro = f"A is {one.name}, B is {other.name}."
    tables = [figure_table(one, other)]
    sections = [
        Section(
            "figures", "Figures", "", intro, tiles(one, other), tables=tables, notes=notes_on_pair(one, other)
        ),
        width_section(one.blocks, other.blocks),
    ]
    if one.said:
        text = "Both go on with the likeliest token."
        table = said_table(one.said, other.said)
        sections.append(Section("answers", "What they say", "", text, {}, tables=[table]))
    return sections


def tiles(one: Side, other: Side) -> dict[str, str]:
    """Return the most important ratios of B to A."""
    found = {"parameters of A kept": f"{ratio(one, other, 'parameters'):.1%}"}
    for name in one.metrics:
        if name.startswith("perplexity/"):
            found["perplexity, of A's"] = f"{ratio(one, other, name):,.2f} ×"
        if name.startswith("decode_ms/"):
            found["speed, of A's"] = f"{1 / ratio(one, other, name):.2f} ×"
    return found


def ratio(one: Side, other: Side, name: str) -> float:
    return other.metrics[name].value / one.metrics[name].value


def notes_on_pair(one: Side, other: Side) -> list[str]:
    """Return notes on differences between the two measurements besides the weights."""
    found = [
        f"{label} is routed: a token uses a part of its MLPs' units, and none of them is removed. Its "
        "multiplications per token are of all units, as a prompt computes them."
        for label, side in (("A", one), ("B", other))
        if side.routed
    ]
    for name in one.metrics:
        mine, its = one.metrics[name].protocol, other.metrics[name].protocol
        if mine.get("tokens_sha256") != its.get("tokens_sha256"):
            found.append("The tokenizers differ, so compare bits per byte and not perplexity.")
        for key in ("dtype", "attention"):
            if mine.get(key) != its.get(key):
                found.append(f"A was measured with {key} {mine.get(key)}, B with {its.get(key)}.")
    return [*dict.fromkeys(found)]


def figure_table(one: Side, other: Side) -> Table:
    columns = {"figure": "", "A": one.name, "B": other.name, "B against A": "change from A to B"}
    rows = []
    for kind, (label, unit, digits) in FIGURES.items():
        for name in [name for name in one.metrics if name.partition("/")[0] == kind]:
            before, after = (side.metrics[name].value / unit for side in (one, other))
            change = Cell(f"{after / before - 1:+.1%}", after / before) if before else MISSING
            form = f",.{max(digits, 2 - magnitude(before), 2 - magnitude(after))}f"
            detail = readable_detail(name.partition("/")[2])
            title = word(f"{label} ({detail})" if detail else label)
            rows.append([title, number(before, form), number(after, form), change])
    timed = any(name.startswith("decode_tokens_per_s") for name in one.metrics)
    caption = "Less is better, except for tokens per second." if timed else "Less is better."
    return Table(caption, columns, rows)


def magnitude(value: float) -> int:
    """Return the power of ten of a number's first digit; a number below a millionth counts as one."""
    return floor(log10(max(abs(value), 1e-6)))


def readable_detail(detail: str) -> str:
    """Return a metric's detail, such as its text; for a latency, the shape in words."""
    batch, found, prompt = detail.partition("xp")
    return f"{batch.removeprefix('b')} x {prompt} tokens" if found and prompt.isdecimal() else detail


def width_section(one: Sequence[Mapping[str, int]], other: Sequence[Mapping[str, int]]) -> Section:
    """Return a table with a row per run of equal blocks and a column per kind of unit that differs."""
    kinds = [kind for kind in SIZES if any(kind in sizes for sizes in (*one, *other))]
    same = [kind for kind in kinds if [it.get(kind) for it in one] == [it.get(kind) for it in other]]
    differing = [kind for kind in kinds if kind not in same]
    intro = "Units of every block of A and of B; blocks that are alike share a row."
    if same:
        intro += f" The same in both: {', '.join(SIZES[kind] for kind in same)}."
    columns = {"block": "counted from 0"} | {SIZES[kind]: "A → B, and B's share" for kind in differing}
    rows = [
        [
            Cell(str(first) if first == last else f"{first}–{last}", first),
            *(kept(mine.get(kind), its.get(kind)) for kind in differing),
        ]
        for first, last, mine, its in alike(one, other)
    ]
    tables = [Table("Units of the blocks", columns, rows)] if differing else []
    return Section("widths", "Kept widths", "", intro, {}, tables=tables)


def kept(before: int | None, after: int | None) -> Cell:
    """Return the units in A and in B. None: the model has no such block."""
    text = " → ".join("–" if units is None else f"{units:,}" for units in (before, after))
    if not before or after is None:
        return Cell(text)
    return Cell(f"{text} ({after / before:.0%})", after / before)


def alike(
    one: Sequence[Mapping[str, int]], other: Sequence[Mapping[str, int]]
) -> Iterator[tuple[int, int, Mapping[str, int], Mapping[str, int]]]:
    """Yield runs of equal blocks: first, last, and the sizes in each model; empty after its last block."""
    count = max(len(one), len(other))
    pairs = [
        tuple(side[place] if place < len(side) else {} for side in (one, other)) for place in range(count)
    ]
    for (mine, its), members in groupby(range(count), key=pairs.__getitem__):
        places = [*members]
        yield places[0], places[-1], mine, its


def said_table(one: Mapping[str, str], other: Mapping[str, str]) -> Table:
    columns = {"prompt": "", "A": "the first model", "B": "the second model"}
    rows = [[word(text) for text in (prompt, said, other[prompt])] for prompt, said in one.items()]
    return Table("What both say to the same prompts", columns, rows)
