"""Progress of long work: a bar at a terminal that goes when the work is done, lines of text elsewhere.

A program asks for lines with `lines`; a library's user who has no terminal sees nothing.
CFSP_PROGRESS=off in the environment turns off both.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

SILENCE = 20.0
"""Seconds without a line after which the next one is printed."""


class Task:
    """Work that is under way, of `total` units if that is known."""

    def __init__(self, what: str, unit: str, total: int | None) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.start = time.monotonic()
        hidden = not sys.stderr.isatty() or is_off()
        self._bar = tqdm(desc=what, unit=unit, total=total, leave=False, disable=hidden)
        _under_way.append(self)

    def advance(self, units: int = 1) -> None:
        self.done += units
        self._bar.update(units)

    def end(self) -> None:
        self._bar.close()
        if self in _under_way:
            _under_way.remove(self)

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        text = f"{self.what}, {self.unit} {self.done:,}{of}"
        if not self.done or self.total is None:
            return text
        left = (time.monotonic() - self.start) / self.done * max(0, self.total - self.done)
        return f"{text}, about {duration(left)} left"


def bar(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items and show how many are done. unit: what one of them is called."""
    with task(what, unit, len(items) if isinstance(items, Sized) else None) as one:
        for item in items:
            yield item
            one.advance()


@contextmanager
def task(what: str, unit: str, total: int | None) -> Iterator[Task]:
    """Show work that says by itself how far it is."""
    one = Task(what, unit, total)
    try:
        yield one
    finally:
        one.end()


@contextmanager
def lines() -> Iterator[None]:
    """Let `begin` print to a stdout that is no terminal, and break long silences with what is under way."""
    other_rank = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one speaks
    if sys.stdout.isatty() or is_off() or other_rank or _printers:
        yield
        return
    printer = Printer()
    _printers.append(printer)
    try:
        yield
    finally:
        _printers.remove(printer)
        printer.stop()
        _under_way.clear()  # what an error ended


def begin(stage: str) -> None:
    """Print the stage that begins now, with the time since the start, inside `lines`."""
    for printer in _printers:
        printer.begin(stage)


def speak(line: str) -> None:
    """Print a line to stdout. A full disk or a closed pipe costs the line, not the work."""
    with suppress(OSError):
        print(line, flush=True)


class Printer:
    """Prints lines, and from a thread of its own those that break a silence."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self._stage = "start"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._break_silence, daemon=True)
        self._thread.start()

    def begin(self, stage: str) -> None:
        self._stage = stage
        self._print(stage)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _break_silence(self) -> None:
        while not self._over.wait(0.5):
            if time.monotonic() - self.last >= SILENCE:
                self._print(": ".join([self._stage, *map(str, _under_way)]))

    def _print(self, line: str) -> None:
        self.last = time.monotonic()
        speak(f"cfsp: {duration(self.last - self.start)}: {line}")


_under_way: list[Task] = []
"""Tasks of this process, the innermost last."""

_printers: list[Printer] = []
"""The one that prints, if any does."""


def is_off() -> bool:
    return os.environ.get("CFSP_PROGRESS", "").lower() == "off"


def duration(seconds: float) -> str:
    """Seconds for people: 4 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
