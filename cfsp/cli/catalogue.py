"""`cfsp list` and `cfsp describe`: the choices of config groups, read from YAML files and docstrings."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfsp.options import imported, suggest
from cfsp.running.plugins import look_here

WIDTH = 110
DEFAULT = re.compile(r"- (?P<group>\w+): *(?P<choice>[\w\[\],]+) *# *(?P<meaning>.*)")
BASE = re.compile(r"^  - ([\w/]+)(?:@_here_)?$", flags=re.MULTILINE)
ENTRY = re.compile(
    r"^  - (?:override )?(?P<slash>/?)(?P<group>[\w/]+)(?:@(?P<place>[\w.]+))?: *(?P<choice>\[.*?\]|\S+)",
    flags=re.MULTILINE,
)
OPTION = re.compile(r"(?P<indent> *)(?P<key>\w+): *(?P<value>.*?)(?: +# (?P<meaning>.*))?")
MEANINGS = {
    "allocator/knowledge": "how protect=knowledge measures sites; chosen with a plus",
    "experiment": "a whole method; chosen with a plus",
    "experiment/block_pruning": "the recipes of the paper on block pruning; chosen with a plus",
    "experiment/lorashear": "the rows of LoRAShear's table; chosen with a plus",
    "experiment/lte": "the recipes of the paper on LTE; chosen with a plus",
    "experiment/paper/cfsp": "the rows of CFSP's table; chosen with a plus",
    "experiment/paper/flap": "the rows of FLAP's table; chosen with a plus",
    "experiment/paper/llm_pruner_20": "the rows of LLM-Pruner's table at 20 %; chosen with a plus",
    "experiment/paper/llm_pruner_50": "the rows of LLM-Pruner's table at 50 %; chosen with a plus",
    "recovery/data": "what a recovery trains on",
    "recovery/objective": "the loss that a recovery lowers",
    "recovery/parameters": "which weights a recovery trains",
    "recovery/training": "steps, batches and learning rate of a recovery",
    "schedule/base": "what schedules are made of; not chosen by itself",
    "schedule/maker": "how routers come about without a training of the model",
    "schedule/pruner": "what a schedule that trains scores, and how",
    "setting": "model, texts and windows of an experiment; chosen with a plus",
    "task/data": "what a recovery of a task trains on; chosen by the task",
}
"""Group that the main config does not have -> what it is."""

LIST_EPILOG = """examples:
  cfsp list                        all groups and their choices
  cfsp list criterion              the choices of one group
  cfsp list recovery/data          a group inside another
  cfsp list --config-dir my/conf   your own choices too
"""
DESCRIBE_EPILOG = """examples:
  cfsp describe criterion=flap
  cfsp describe recovery/training=default
  cfsp describe experiment=flap
"""


@dataclass(frozen=True)
class Choice:
    """One YAML file of a config group."""

    group: str
    name: str
    path: Path

    @property
    def comment(self) -> str:
        """The comment at the head of the file."""
        lines = self.path.read_text().splitlines()
        is_no_word = lines and (lines[0].startswith("# @package") or lines[0].endswith(f"/{self.path.name}"))
        lines = lines[1:] if is_no_word else lines  # a first line may be the path of the file
        head = lines[: next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))]
        return " ".join(line.lstrip("# ") for line in head)

    @property
    def title(self) -> str:
        """The first sentence of the comment; without a comment, the class or function."""
        first = re.split(r"(?<!\bal)\.(?:\s|$)", self.comment, maxsplit=1)[0]
        return first or self.target or ""

    @property
    def bases(self) -> list[Choice]:
        """The files that the file begins with: of its group, or of another one that begins with a slash."""
        names = [name for name in BASE.findall(self.path.read_text()) if name != "_self_"]
        return [self.base(name) for name in names]

    def base(self, name: str) -> Choice:
        """Return the file that a name means in this one; with a slash in front, of any group."""
        from cfsp.running.build import CONF

        group, _, stem = (name if name.startswith("/") else f"/{self.group}/{name}")[1:].rpartition("/")
        places = [
            home / group / f"{stem}.yaml" for home in (self.path.parents[self.group.count("/") + 1], CONF)
        ]
        return Choice(group, stem, next((place for place in places if place.is_file()), places[0]))

    @property
    def target(self) -> str | None:
        """The class or function that the file, or one that it begins with, names."""
        found = re.search(r"^ {0,2}_target_: *(\S+)", self.path.read_text(), flags=re.MULTILINE)
        return found[1] if found else next((base.target for base in self.bases), None)

    def options(self) -> list[tuple[str, str, str]]:
        """Return key, default and meaning of every option of the file and of those that it begins with."""
        from omegaconf import OmegaConf

        from cfsp.running.plain import plain

        rows = {row[0]: row for base in self.bases for row in base.options()}
        meanings = {key: meaning for key, _, meaning in rows.values()} | self.meanings()
        whole = plain(OmegaConf.load(self.path))
        rows |= {key: (key, value, meanings.get(key, "")) for key, value in leaf_options(whole)}
        return [*rows.values()]

    def meanings(self) -> dict[str, str]:
        """Return dotted key -> the comment on its line."""
        found: dict[str, str] = {}
        path: list[tuple[int, str]] = []
        for line in self.path.read_text().splitlines():
            parts = OPTION.fullmatch(line)
            if parts is not None:
                indent = len(parts["indent"])
                path = [*(step for step in path if step[0] < indent), (indent, parts["key"])]
                found[".".join(key for _, key in path)] = parts["meaning"] or ""
        return found

    def parts(self) -> dict[str, str]:
        """Return the groups that the file chooses from, as they are typed, and its choices."""
        found = {key: choice for base in self.bases for key, choice in base.parts().items()}
        here = self.group.replace("/", ".")
        for entry in ENTRY.finditer(self.path.read_text()):
            group, place = entry["group"], entry["place"]
            if not entry["slash"]:
                group = f"{self.group}/{group}"
            elif place and not place.startswith("_global_"):
                group = f"{group}@{place}" if self.is_global else f"{group}@{here}.{place}"
            found[group] = entry["choice"]
        return found

    @property
    def is_global(self) -> bool:
        """Whether its keys are those of the whole config."""
        return self.path.read_text().startswith("# @package _global_")


def list_choices(arguments: Sequence[str]) -> None:
    """Print the groups and their choices."""
    parser = command_parser("list", "What there is to choose in every config group.", LIST_EPILOG)
    parser.add_argument("group", nargs="?", help="one group; default: all")
    options = parser.parse_args(arguments)
    from cfsp.running.build import search_path

    folders = search_path(options.config_dir)
    known = groups(folders)
    chosen = known if options.group is None else [pick("group", options.group, known)]
    meanings = MEANINGS | {
        found["group"]: f"{found['meaning']}; default {found['choice']}"
        for found in map(DEFAULT.search, main_config())
        if found
    }
    for group in chosen:
        print(f"{group}  {meanings.get(group, '')}".rstrip())
        choices = choices_of(group, folders)
        width = max(len(choice.name) for choice in choices)
        for choice in choices:
            print(hanging(f"  {choice.name:{width}}  ", choice.title))
        print()
    print(
        "cfsp describe GROUP=CHOICE tells more; cfsp GROUP=CHOICE chooses it. Groups without a default take a"
    )
    print("plus: cfsp +experiment=CHOICE, cfsp +setting=CHOICE, and groups of your own.")


def describe_choice(arguments: Sequence[str]) -> None:
    """Print what one choice is, its options, and where it comes from."""
    parser = command_parser(
        "describe", "One choice: its options, their meaning and defaults, its source.", DESCRIBE_EPILOG
    )
    parser.add_argument("choice", metavar="GROUP=CHOICE")
    options = parser.parse_args(arguments)
    from cfsp.running.build import search_path

    group, sign, name = options.choice.lstrip("+").partition("=")
    folders = search_path(options.config_dir)
    if not sign:
        parser.error(f"{options.choice!r}: expected GROUP=CHOICE, such as criterion=flap")
    group = pick("group", group, groups(folders))
    there = {choice.name: choice for choice in choices_of(group, folders)}
    choice = there[pick(f"choice of {group}", name, [*there])]
    print(f"{group}={choice.name}\n{textwrap.fill(choice.comment, WIDTH)}\n")
    head = "" if choice.is_global else f"{group.replace('/', '.')}."
    rows = [(f"{head}{key}", value, meaning) for key, value, meaning in choice.options()]
    for part, one in choice.parts().items():
        inner = part.partition("@")[0]
        if one.startswith("$"):
            rows.append((part, "of the task", f"cfsp list {inner}"))
        else:
            told = f"cfsp list {inner}" if one.startswith("[") else f"cfsp describe {inner}={one}"
            rows.append((part, one, told))
    print_options(rows)
    if choice.target is not None:
        print(f"\n{choice.target}\n{textwrap.indent(docstring(choice.target), '  ')}")


def leaf_options(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and values of a config, as they are typed."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaf_options(value, f"{prefix}{key}.")
        elif key not in ("_target_", "defaults"):
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def print_options(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print options in columns."""
    if not rows:
        print("no options")
        return
    rows = [("option", "default", "meaning"), *rows]
    widths = [min(max(len(row[column]) for row in rows), most) for column, most in ((0, 60), (1, 30))]
    for key, value, meaning in rows:
        print(hanging(f"{key:{widths[0]}}  {value:{widths[1]}}  ", meaning))


def docstring(target: str) -> str:
    """Return the docstring of a class or function. Raises ValueError if it cannot be imported."""
    look_here()
    return inspect.getdoc(imported("_target_", target)) or ""


def groups(folders: Sequence[Path]) -> list[str]:
    """Return all groups, in the order of the main config, then by name."""
    there = {
        str(path.parent.relative_to(folder))
        for folder in folders
        for path in folder.rglob("*.yaml")
        if path.parent != folder and "hydra" not in path.relative_to(folder).parts
    }
    first = [found["group"] for found in map(DEFAULT.search, main_config()) if found]
    return [group for group in [*first, *sorted(there - {*first})] if group in there]


def choices_of(group: str, folders: Sequence[Path]) -> list[Choice]:
    """Return the choices of a group by name; the user's own replace ours of the same name."""
    paths = {
        path.stem: path for folder in reversed(folders) for path in sorted((folder / group).glob("*.yaml"))
    }
    return [Choice(group, name, path) for name, path in sorted(paths.items())]


def main_config() -> list[str]:
    from cfsp.running.build import CONF

    return (CONF / "config.yaml").read_text().splitlines()


def pick(what: str, name: str, there: Sequence[str]) -> str:
    """Return the name if it exists. Exits with one line that suggests the nearest otherwise."""
    if name in there:
        return name
    raise SystemExit(f"cfsp: error: {name}: no such {what}; {suggest(name, there)}")


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"cfsp {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-dir", help="a folder with config groups of your own")
    return parser


def hanging(head: str, text: str) -> str:
    """Wrap text after a head, with its lines aligned."""
    room = max(WIDTH - len(head), 30)
    lines = textwrap.wrap(text, room, break_long_words=False) or [""]
    return ("\n" + " " * len(head)).join([head + lines[0], *lines[1:]]).rstrip()
