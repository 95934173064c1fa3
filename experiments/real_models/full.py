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
ALL, ALL_BUT = "all choices", "all choices but BoolQ"
"""Questions of all tasks with choices; once without BoolQ, where small models lose to always saying yes."""

TEXTS = """
## Other windows and texts, and the distance to the dense model

Written by those of the parts `mlp`, `both`, `depth` and `recovery` of `experiments/real_models/run.sh` that
were run, with `MODEL={model}`, `WINDOWS={windows}` and `sparsity={sparsity:g}`: perplexity in
so many windows of each text; KL to the dense model, in nats per token, and how often both find
the same next token the likeliest.

"""
TASKS = """
## Tasks

Written by the parts `zero_shot` and `generation` of `experiments/real_models/run.sh`, with
`MODEL={model}` and `sparsity={sparsity:g}`: per cent of right answers ± standard error. ≈: cannot be told
from the dense model on the same questions (McNemar's exact test, p ≥ 0.05). The rows "all" have the questions
of all tasks with choices together.

"""


def texts(found: Found, name: Name, model: str) -> str:
    """Return the runs that measured the distance to the dense model, a table for each size and protocol."""
    groups: dict[tuple[float, int], list[Record]] = {}
    for one in found.values():
        metrics = one.metrics["pruned"]
        windows = [metrics[key].protocol["windows"] for key in metrics if key.startswith("kl/")]
        for number in windows:
            groups.setdefault((one.config["sparsity"], number), []).append(one)
    return "".join(
        TEXTS.format(model=model, sparsity=sparsity, windows=windows) + table_of_texts(runs, name)
        for (sparsity, windows), runs in sorted(groups.items())
    )


def table_of_texts(runs: Sequence[Record], name: Name) -> str:
    """Return a table of the runs, the best first. Raises ValueError if two would have one row."""
    keys = [key for key in runs[0].metrics["pruned"] if key.split("/")[0] in QUANTITIES]
    rows = {"dense": ["0.0%", *(figure(key, runs[0].metrics["dense"][key].value) for key in keys)]}
    for one in sorted(runs, key=lambda run: run.metrics["pruned"][keys[0]].value):
        row = name(one) + further(one)
        if row in rows:
            raise ValueError(
                f"{row}: several runs of the full protocol; expected one of each size and protocol"
            )
        measured = [figure(key, one.metrics["pruned"][key].value) for key in keys]
        rows[row] = [f"{one.sparsity['model']:.1%}", *measured]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["gone of all", *map(heading, keys)])
    return markdown(table.rename_axis("method")) + "\n"


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
    """Return tasks by models, a table for each size: what part of the answers is right."""
    groups: dict[float, dict[Path, dict[str, Paired]]] = {}
    for path, one in found.items():
        if pairs := answers(path, one):
            groups.setdefault(one.config["sparsity"], {})[path] = pairs
    text = ""
    for sparsity, runs in sorted(groups.items()):
        columns: dict[str, dict[str, str]] = {"n": {}, "dense": {}}
        for path, pairs in runs.items():
            head = name(found[path]) + further(found[path])
            column = columns.setdefault(head, {})
            if twice := column.keys() & pairs.keys():
                raise ValueError(
                    f"{head}: several runs of {', '.join(sorted(twice))}; expected one of each size"
                )
            for task, pair in pairs.items():
                columns["n"][task] = str(pair.n)
                columns["dense"][task] = percent(pair.one, pair.n)
                column[task] = percent(pair.other, pair.n) + ("" if pair.distinguishable else " ≈")
        table = pd.DataFrame(columns).fillna("-").rename_axis("task")
        text += TASKS.format(model=model, sparsity=sparsity) + markdown(table) + "\n"
    return text


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
    some = [key for key in choices if not key.endswith("/boolq")]
    for row, kept in ((ALL, choices), (ALL_BUT, some)):
        if len(kept) > 1:
            found[row] = paired(*(joined([sides[key][place] for key in kept]) for place in (0, 1)))
    return found


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of all tasks; questions are named with their task's place."""
    items = [f"{place}/{item}" for place, part in enumerate(parts) for item in part.items]
    return Outcomes("correct", items, [value for part in parts for value in part.values])


def percent(share: float, n: int) -> str:
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / (n - 1)) ** 0.5:.1f}"


def markdown(table: pd.DataFrame) -> str:
    return table.reset_index().to_markdown(index=False, disable_numparse=True)
