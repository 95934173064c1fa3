"""`cfsp-cache`: show and clear what jobs share on disk."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfsp.storage.cache import Cache, Entry

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
  written      what models wrote with calibration=self, as JSON lines

Clearing loses time and no result: records lie in results/records. A run keeps nothing with cache=off.
"""


def main(arguments: list[str] | None = None) -> None:
    """List or clear a cache. Exit code 1 if an entry is altered or broken, 2 for a bad folder or age."""
    parser = argparse.ArgumentParser(
        prog="cfsp-cache",
        description="Shows and clears what jobs share on disk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", default="results/cache", help="default: results/cache")
    parser.add_argument("--clear", action="store_true", help="delete the entries instead of listing them")
    parser.add_argument("--older", type=seconds, default=0.0, help="only those older than 30m, 12h, 7d, ...")
    kinds = ("metrics", "statistics", "texts", "written")
    parser.add_argument("--kind", choices=kinds, help="only those of one kind")
    options = parser.parse_args(arguments)
    if not Path(options.folder).is_dir():
        parser.error(f"{options.folder!r} is no folder; expected one that a run was given as cache=...")

    from cfsp.storage.cache import KINDS, Cache

    cache = Cache(Path(options.folder))
    kinds = [options.kind] if options.kind else KINDS
    try:
        entries = cache.clear(options.older, kinds) if options.clear else cache.entries(kinds)
    except OSError as error:
        raise SystemExit(f"cfsp-cache: error: {error}; expected a folder that can be written") from None
    entries = [entry for entry in entries if entry.age >= options.older]
    broken = False
    for entry in entries:
        try:
            text = "" if options.clear else entry_title(cache, entry)
        except (ValueError, OSError) as error:
            broken = True
            text = "(altered or broken; a job that wants it makes it again)"
            print(f"cfsp-cache: {entry.path}: {' '.join(str(error).split())}", file=sys.stderr)
        name = entry.path.relative_to(options.folder)
        print(f"{size(entry.size):>10}  {age(entry.age):>5}  {name}  {text}")
    word = "deleted" if options.clear else "kept"
    print(f"{size(sum(entry.size for entry in entries)):>10}  {word}, {len(entries)} entries")
    if broken:
        raise SystemExit(1)


def entry_title(cache: Cache, entry: Entry) -> str:
    """Describe an entry: a text's name, the model and text of statistics, the values of metrics.

    Raises:
        ValueError, OSError: the entry does not match its checksum, or one of its files cannot be read.
    """
    from cfsp.records.record import read_metrics
    from cfsp.storage.about import About
    from cfsp.storage.cache import ABOUT

    cache.check(entry)
    if entry.kind == "metrics":
        return ", ".join(f"{name} {one.value:.4g}" for name, one in read_metrics(entry.path).items())
    if entry.kind == "texts":
        return text_of(entry.path)
    about = entry.path.parent / ABOUT
    return str(About.load(about)) if about.exists() else ""  # none if cleared, or made without a run


def text_of(path: Path) -> str:
    """Return a text's name. Raises ValueError if the file holds no tokens of a text."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata()["text"]
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"no tokens of a text ({error!r})") from error


def seconds(text: str) -> float:
    """Convert an age such as 7d to seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number and s, m, h, d or w, such as 7d")
    return float(match[1]) * UNITS[match[2]]


def age(value: float) -> str:
    """Format seconds in the largest unit that they fill."""
    name, unit = next((item for item in reversed(UNITS.items()) if value >= item[1]), ("s", 1))
    return f"{value / unit:.0f}{name}"


def size(value: int) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


if __name__ == "__main__":
    main()
