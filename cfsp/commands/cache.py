"""`cfsp-cache`: what jobs share on disk, shown and cleared."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
EPILOG = """examples:
  cfsp-cache                                       what results/cache holds, the newest first
  cfsp-cache my/results/cache --kind statistics    of another folder, one kind
  cfsp-cache --clear --older 7d                    delete what was made more than a week ago
  cfsp-cache --clear                               delete everything; jobs make again what they need

kinds:
  statistics   what calibration measured, per model, sites, tokens, dtype, device and code
  metrics      what evaluation measured, per weights and protocol
  texts        token ids and windows of words, per text and tokenizer

Clearing loses time and no result: records lie in results/records. A run keeps nothing with cache=off.
"""


def main(arguments: list[str] | None = None) -> None:
    """List or clear a cache. Exit code 2 if the folder or the age is none."""
    parser = argparse.ArgumentParser(
        prog="cfsp-cache",
        description="Shows and clears what jobs share on disk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default="results/cache", help="default: results/cache")
    parser.add_argument("--clear", action="store_true", help="delete the entries instead of listing them")
    parser.add_argument("--older", type=seconds, default=0.0, help="only those older than 30m, 12h, 7d, ...")
    parser.add_argument("--kind", choices=("metrics", "statistics", "texts"), help="only those of one kind")
    options = parser.parse_args(arguments)
    if not Path(options.folder).is_dir():
        parser.error(f"{options.folder!r} is no folder; expected one that a run was given as cache=...")

    from cfsp.cache import KINDS, Cache  # slow to import

    cache = Cache(Path(options.folder))
    kinds = [options.kind] if options.kind else KINDS
    if options.clear:
        entries = cache.clear(options.older, kinds)
    else:
        entries = [entry for entry in cache.entries(kinds) if entry.age >= options.older]
    for entry in entries:
        name = entry.path.relative_to(options.folder)
        print(f"{size(entry.size):>10}  {age(entry.age):>5}  {name}  {content(entry.kind, entry.path)}")
    word = "deleted" if options.clear else "kept"
    print(f"{size(sum(entry.size for entry in entries)):>10}  {word}, {len(entries)} entries")


def content(kind: str, path: Path) -> str:
    """What people call an entry by: the text, the model and text of statistics, the figures of metrics."""
    try:
        if kind == "metrics":
            return ", ".join(
                f"{name} {one['value']:.4g}" for name, one in json.loads(path.read_text()).items()
            )
        if kind == "texts":
            return text_of(path)
        about = json.loads((path.parent / "about.json").read_text())
        model = "@".join(filter(None, (about["model"], about["revision"])))
        windows = f"{about['samples']} x {about['seqlen']} tokens of {about['text']}"
        return f"{model} ({about['dtype']}), {windows}, seed {about['seed']}"
    except FileNotFoundError:  # cleared, or made without a run
        return ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return "(cannot be read; a job that wants it makes it again)"


def text_of(path: Path) -> str:
    """What a text is called, from the header of its safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header["__metadata__"]["text"]


def seconds(text: str) -> float:
    """An age such as 7d in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number and s, m, h, d or w, such as 7d")
    return float(match[1]) * UNITS[match[2]]


def age(value: float) -> str:
    """Seconds in the largest unit that they fill."""
    name, unit = next((item for item in reversed(UNITS.items()) if value >= item[1]), ("s", 1))
    return f"{value / unit:.0f}{name}"


def size(value: int) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


if __name__ == "__main__":
    main()
