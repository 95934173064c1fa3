"""Write what docs/ says of the code: families, options, the Python API, the map for language models.

    python docs/generate.py

A page has marks around what is generated; the rest of it is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

import cfsp

DOCS = Path(__file__).parent
CONF = DOCS.parent / "conf"
GROUPS = (
    "task model calibration criterion allocator compensation schedule schedule/pruner recovery "
    "recovery/parameters recovery/objective recovery/data recovery/training evaluation export "
    "logger hydra/launcher"
).split()

COMMON = {
    "seed": "what is drawn at random",
    "revision": "a branch, a tag or a commit on the hub",
    "trust_remote_code": "true: run the code of the folder or the hub",
    "samples": "windows of the text",
    "seqlen": "tokens of a window",
    "window": "tokens of a window",
    "batch_size": "windows at a time",
    "name": "what records call the data set",
    "path": "a data set on the hub, or a folder",
    "config": "which part of the data set",
    "split": "which split of the text",
    "rows": "rows that are read; null: all",
    "column": "the field that holds the text",
    "data_files": "which files of a large data set",
    "separator": "what stands between documents",
    "paths": "files or globs",
    "steps": "how many times units are judged anew",
    "learning_rate": "the highest one, after the warm-up",
    "warmup": "steps, or rounds, before the count begins",
    "scheduler": "how the learning rate falls: a name of transformers",
    "weight_decay": "of AdamW",
    "epochs": "how often the examples are seen",
    "accumulation": "batches of an optimizer step",
    "alpha": "LoRA's scale is alpha / rank",
    "dropout": "of the adapters' inputs",
    "min_rank": "the lowest rank of a block",
    "temperature": "softens both distributions",
    "hub": "a data set on the hub",
    "head": "the model's head",
    "labels": "names of the labels, in the order of their indices",
    "batch_sizes": "prompts at a time, each measured",
    "new_tokens": "tokens to generate",
    "prompts": "what the models continue",
    "project": "of W&B",
    "entity": "of W&B: a user or a team",
    "tags": "of the W&B run",
    "timeout_min": "minutes of a job",
    "account": "of sbatch",
    "qos": "of sbatch",
    "constraint": "of sbatch",
    "cpus_per_task": "cores of a job",
    "mem_gb": "memory of a job",
}
"""Options whose meaning is the same wherever they stand."""


def families() -> str:
    """A row for every model type: which sites it has."""
    rows = [
        "| `model_type` | `mlp` | `attention` | `cross_attention` | `query_heads` | `block` | `hidden` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, layout in sorted(cfsp.LAYOUTS.items()):
        heads = layout.places.get("attention")
        attention = "no" if heads is None else f"unless `{heads.unless}`" if heads.unless else "yes"
        grouped = heads is not None and "groups" in layout.names
        queries = "no" if not grouped else "if grouped" if attention == "yes" else f"if grouped, {attention}"
        hidden = "yes" if layout.norms else "no"
        whole, crosses = ("yes", "no") if layout.decoder is None else ("no", "yes")
        rows.append(f"| `{name}` | yes | {attention} | {crosses} | {queries} | {whole} | {hidden} |")
    return "\n".join(rows)


def config() -> str:
    """Every choice of every group with its options."""
    parts = ["## The run", "", *option_table(CONF / "config.yaml")]
    for group in GROUPS:
        parts += ["", f"## {group}"]
        for path in sorted((CONF / group).glob("*.yaml")):
            parts += ["", f"### {group}={path.stem}", "", *choice(path)]
    return "\n".join(parts)


def choice(path: Path) -> list[str]:
    """What a choice is, what it is made of, its options."""
    text = path.read_text()
    data = yaml.safe_load(text)
    heading = re.match(r"(?:# @.*\n)?((?:# (?!@).*\n)+)", text)
    words = " ".join(re.findall(r"# (.*)", heading[1])) if heading else summary(get_object(target(data)))
    made_of = [
        f"`{name}={value}`" if not str(value).startswith("$") else f"`{name}` of the task"
        for row in data.get("defaults", [])
        if isinstance(row, dict)
        for name, value in row.items()
        if not re.search(r"override|@", name)
    ]
    lines = [words]
    if made_of:
        lines += ["", f"Made of {', '.join(made_of)}."]
    table = option_table(path)
    return [*lines, "", *table] if table else lines


def option_table(path: Path) -> list[str]:
    data, comments = yaml.safe_load(path.read_text()), comments_of(path.read_text())
    rows = []
    for keys, value in leaves(
        {key: value for key, value in data.items() if key not in ("defaults", "hydra")}
    ):
        meaning = comments.get(keys) or explained(data, keys) or COMMON.get(keys[-1], "")
        rows.append(f"| `{'.'.join(keys)}` | `{shown(value)}` | {cell(meaning)} |")
    return ["| option | default | meaning |", "|---|---|---|", *rows] if rows else []


def target(data: Any) -> str:
    """The first `_target_` of a choice: an evaluator or a logger stands under its name."""
    return (
        data["_target_"]
        if "_target_" in data
        else target(next(v for v in data.values() if isinstance(v, dict)))
    )


def leaves(data: dict, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*keys, key))
        elif key != "_target_":
            yield (*keys, key), value


def comments_of(text: str) -> dict[tuple[str, ...], str]:
    """Keys -> the comment at the end of their line."""
    found, open_keys = {}, []
    for line in text.splitlines():
        match = re.match(r"( *)(\w+):.*?(?: # (.*))?$", line)
        if match:
            open_keys = [(depth, key) for depth, key in open_keys if depth < len(match[1])]
            open_keys.append((len(match[1]), match[2]))
            if match[3]:
                found[tuple(key for _, key in open_keys)] = re.sub(r"^.*#\s*", "", line).strip()
    return found


def explained(data: dict, keys: tuple[str, ...]) -> str:
    """What the docstring of the class or function says of an option: `name: meaning`."""
    for key in keys[:-1]:
        data = data[key]
    if "_target_" not in data:
        return ""
    made = get_object(data["_target_"])
    for owner in getattr(made, "__mro__", (made,)):
        text = inspect.cleandoc(owner.__doc__ or "")
        match = re.search(rf"(?:^|\. ){keys[-1]}: (.+(?:\n(?!\w+: ).+)*)", text, flags=re.MULTILINE)
        if match:
            return " ".join(re.split(r"\. \w+: ", match[1])[0].split())
    return ""


def shown(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000)
        .removesuffix("\n")
        .removesuffix("\n...")
        .strip()
    )


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def summary(thing: Any) -> str:
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def api() -> str:
    """Every public name: its signature and its docstring."""
    parts = []
    for name in cfsp.__all__:
        thing = getattr(cfsp, name)
        if not callable(thing):
            continue
        parts += [f"## {name}", "", *documented(thing)]
        if inspect.isclass(thing):
            parts += methods(thing)
    return "\n".join(parts)


def documented(thing: Any) -> list[str]:
    first, _, rest = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")
    lines = ["```python", signature(thing), "```", "", " ".join(first.split()), ""]
    return [*lines, "```text", rest, "```", ""] if rest else lines


def signature(thing: Any) -> str:
    """One line for each parameter where they are many."""
    try:
        text = re.sub(r"((?:: |-> ))'([^']*)'", r"\1\2", str(inspect.signature(thing)))
    except ValueError:  # an abstract class without a constructor of its own
        text = "()"
    text = re.sub(r"<.*? at 0x[0-9a-f]+>", "...", text)  # a default that is a function
    parameters = re.split(r", (?=\*?\*?\w+(?::|=|,|\)|$))", text)
    return thing.__name__ + (text if len(text) < 90 else ",\n    ".join(parameters))


def methods(thing: type) -> list[str]:
    """The public methods that a class defines, a line each."""
    rows = [
        f"- `{name}`: {summary(member)}"
        for name, member in vars(thing).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and member.__doc__
    ]
    return [*rows, ""] if rows else []


def llms() -> str:
    """The map of the pages for language models: https://llmstxt.org."""
    site = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}.", ""]
    for section in site["nav"]:
        ((title, pages),) = section.items()
        lines += [f"## {title}", ""]
        lines += [f"- [{heading(page)}]({page}): {first_sentence(page)}" for page in flat(pages)]
        lines.append("")
    return "\n".join(lines)


def flat(pages: Any) -> Iterator[str]:
    """The pages of a part of the navigation, in order."""
    if isinstance(pages, str):
        yield pages
        return
    for page in pages:
        yield from flat(next(iter(page.values())) if isinstance(page, dict) else page)


def heading(page: str) -> str:
    return re.search(r"^# (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)[1]


def first_sentence(page: str) -> str:
    """The first sentence of the first paragraph, links taken off."""
    paragraph = re.search(r"^(?![#>|`<\-! ]).+(?:\n.+)*", (DOCS / page).read_text(), flags=re.MULTILINE)[0]
    words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.match(r".+?[.?](?= |$)", words)[0]


PARTS = {"families.md": families, "reference/config.md": config, "reference/api.md": api}


def pages() -> dict[Path, str]:
    """Path -> what should stand there."""
    made = {}
    for name, part in PARTS.items():
        before, _, after = re.split(
            r"(?<=<!-- generated -->\n)(.*)(?=<!-- end -->)", (DOCS / name).read_text(), flags=re.S
        )
        made[DOCS / name] = f"{before}\n{part()}\n\n{after}"
    made[DOCS / "llms.txt"] = llms()
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(DOCS.parent), file=sys.stderr)
