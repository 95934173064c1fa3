"""Reading: the records in the places that a user names, and an error for each file that is not a record."""

from __future__ import annotations

from collections.abc import Iterable
from glob import glob
from pathlib import Path

from cfsp.records.record import Record
from cfsp.storage.schema import load_each


def read_records(places: Iterable[str | Path]) -> tuple[dict[Path, Record], list[str]]:
    """Read records, by file. Also return a line of error for each bad file and each place without records.

    A place is a folder, a file or a glob of them. A folder holds records itself or in `records/`.

    Raises:
        ValueError: there is no record at all.
    """
    records: dict[Path, Record] = {}
    faults: list[str] = []
    for place in places:
        files = record_files(place)
        if not files:
            faults.append(f"{place}: no records; expected a folder, a .json file or a glob of them")
        new = [path for path in files if path not in records]
        found, more = load_each(new, lambda path: (path, Record.load(path)))
        records |= dict(found)
        faults += more
    faults = list(dict.fromkeys(faults))
    if not records:
        raise ValueError("; ".join(faults))
    return records, faults


def record_files(place: str | Path) -> list[Path]:
    """Return the record files that a place stands for, sorted."""
    found: list[Path] = []
    for path in map(Path, [place] if Path(place).exists() else glob(str(place))):
        inner = path / "records"
        folder = inner if inner.is_dir() else path
        found += folder.glob("*.json") if folder.is_dir() else [path]
    return sorted(found)
