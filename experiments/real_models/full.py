"""Tables of the full protocol: other windows and texts, the distance to the dense model, and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from cfsp.records.identity import part_name
from cfsp.records.outcome_file import read_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Record
from cfsp.tables.paired import Paired, paired

Found = Mapping[Path, Record]
Name = Callable[[Record], str]
QUANTITIES = {"perplexity": "", "kl": "KL", "agreement": "agreement"}
WRITTEN = ("prompt_level_strict_acc", "exact_match")
"""Measures of written answers; of tasks with choices the table shows the one that papers report."""
ALL = "all choices"

TEXTS = """
## Other windows and texts, and the distance to the dense model

Written by the parts `mlp`, `both`, `depth` and `recovery` of `experiments/real_models/run.sh`, with
`MODEL={model}`, `WINDOWS={windows}` and `sparsity={sparsity:g}`: perplexity in so many windows of each text;
KL to the dense model, in nats per token, and how often both find the same next token the likeliest.

"""
TASKS = """
## Tasks

Written by the parts `zero_shot` and `generation` of `experiments/real_models/run.sh`, with
`MODEL={model}` and `sparsity={sparsity:g}`: per cent of right answers ± standard error. ≈: cannot be told
from the dense model on the same questions (McNemar's exact test, p ≥ 0.05). "{all}" are the questions of all
tasks with choices.

"""


def texts(found: Found, name: Name, model: str) -> str:
    """Return the runs that measured the distance to the dense model, the best first; "" if there are none."""
    runs = [one for one in found.values() if any(key.startswith("kl/") for key in one.metrics["pruned"])]
    if not runs:
        return ""
    keys = [key for key in runs[0].metrics["pruned"] if key.split("/")[0] in QUANTITIES]
    rows = {"dense": ["0.0%", *(figure(key, runs[0].metrics["dense"][key].value) for key in keys)]}
    for one in sorted(runs, key=lambda run: run.metrics["pruned"][keys[0]].value):
        measured = [figure(key, one.metrics["pruned"][key].value) for key in keys]
        rows[name(one) + further(one)] = [f"{one.sparsity['model']:.1%}", *measured]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["gone of all", *map(heading, keys)])
    head = TEXTS.format(model=model, **asked(runs, keys[0]))
    return head + markdown(table.rename_axis("method")) + "\n"


def asked(runs: Sequence[Record], key: str) -> dict[str, float]:
    """Return the sparsity and the windows of the runs. Raises ValueError if they differ."""
    found = {(one.config["sparsity"], one.metrics["pruned"][key].protocol["windows"]) for one in runs}
    if len(found) > 1:
        raise ValueError(
            f"(sparsity, windows) of the full protocol: {sorted(found)}; expected the same of all"
        )
    ((sparsity, windows),) = found
    return {"sparsity": sparsity, "windows": windows}


def further(one: Record) -> str:
    """Return what a run has beside its method: other sites, a recovery."""
    sites, recovery = one.config["sites"], part_name(one.config["recovery"])
    text = "" if sites == ["mlp"] else f", {' and '.join(sites)}"
    return text if recovery == "none" else f"{text}, then {recovery}"


def heading(key: str) -> str:
    quantity, text = key.split("/", 1)
    source, _, window = text.removeprefix("files:").partition("@")
    return " ".join(word for word in (QUANTITIES[quantity], source, window) if word)


def figure(key: str, value: float) -> str:
    return {"kl": f"{value:.3f}", "agreement": f"{value:.1%}"}.get(key.split("/")[0], f"{value:,.2f}")


def tasks(found: Found, name: Name, model: str) -> str:
    """Return tasks by models: what part of the answers is right; "" if no run has answered."""
    kept = {path: answers(path, one) for path, one in found.items()}
    runs = {path: pairs for path, pairs in kept.items() if pairs}
    if not runs:
        return ""
    columns: dict[str, dict[str, str]] = {"n": {}, "dense": {}}
    for path, pairs in runs.items():
        column = columns.setdefault(name(found[path]), {})
        for task, pair in pairs.items():
            columns["n"][task] = str(pair.n)
            columns["dense"][task] = percent(pair.one, pair.n)
            column[task] = percent(pair.other, pair.n) + ("" if pair.distinguishable else " ≈")
    (sparsity,) = {found[path].config["sparsity"] for path in runs}
    table = pd.DataFrame(columns).fillna("-").rename_axis("task")
    return TASKS.format(model=model, sparsity=sparsity, all=ALL) + markdown(table) + "\n"


def answers(path: Path, one: Record) -> dict[str, Paired]:
    """Return task -> how the run compares with its dense model; tasks with choices also together."""
    metrics = one.metrics["pruned"]
    keys = [key for key in metrics if metrics[key].protocol.get("papers") or key.split("/")[0] in WRITTEN]
    if not keys or not one.outcomes:
        return {}
    file = read_outcomes(path, one)
    sides = {key: (file.read("dense", key), file.read("pruned", key)) for key in keys}
    found = {key: paired(*both) for key, both in sides.items()}
    choices = [key for key in keys if key.split("/")[0] not in WRITTEN]
    if len(choices) > 1:
        found[ALL] = paired(*(joined([sides[key][place] for key in choices]) for place in (0, 1)))
    return found


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of all tasks; questions are named with their task's place."""
    items = [f"{place}/{item}" for place, part in enumerate(parts) for item in part.items]
    return Outcomes("correct", items, [value for part in parts for value in part.values])


def percent(share: float, n: int) -> str:
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / (n - 1)) ** 0.5:.1f}"


def markdown(table: pd.DataFrame) -> str:
    return table.reset_index().to_markdown(index=False, disable_numparse=True)
