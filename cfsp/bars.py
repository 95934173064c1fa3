"""Progress of long work: a bar on a terminal, removed at the end; lines of text elsewhere.

Lines are printed only inside `lines`, so a library's user without a terminal sees nothing.
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
"""Seconds without output after which a line is printed."""


class Work:
    """Work in progress. total: its number of units; None if unknown."""

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
    """Yield the items and show how many are done. unit: the name of one item."""
    with task(what, unit, len(items) if isinstance(items, Sized) else None) as one:
        for item in items:
            yield item
            one.advance()


@contextmanager
def task(what: str, unit: str, total: int | None) -> Iterator[Work]:
    """Show the progress of work that calls `advance` by itself."""
    one = Work(what, unit, total)
    try:
        yield one
    finally:
        one.end()


@contextmanager
def lines(program: str = "cfsp", to_stderr: bool = False) -> Iterator[None]:
    """Print lines if stdout is not a terminal: each `begin`, and running work after a long silence.

    program: what each line begins with. to_stderr: print on stderr, if that is not a terminal.
    """
    other_rank = os.environ.get("RANK", "0") != "0"  # only rank 0 of torchrun prints
    is_terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    if is_terminal or is_off() or other_rank or _printers:
        yield
        return
    printer = Printer(program, to_stderr)
    _printers.append(printer)
    try:
        yield
    finally:
        _printers.remove(printer)
        printer.stop()
        _under_way.clear()  # work that an error ended


def begin(stage: str) -> bool:
    """Print the stage that begins now and the time since the start. -> whether: not outside `lines`"""
    for printer in _printers:
        printer.begin(stage)
    return bool(_printers)


def speak(line: str, to_stderr: bool = False) -> None:
    """Print a line to stdout or stderr. Ignores a full disk and a closed pipe."""
    with suppress(OSError):
        print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)


class Printer:
    """Prints stages, and from its own thread a line after each long silence."""

    def __init__(self, program: str, to_stderr: bool) -> None:
        self.program, self.to_stderr = program, to_stderr
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
        speak(f"{self.program}: {duration(self.last - self.start)}: {line}", self.to_stderr)


_under_way: list[Work] = []
"""Work of this process, the innermost last."""

_printers: list[Printer] = []
"""The printer inside `lines`; empty outside."""


def is_off() -> bool:
    return os.environ.get("CFSP_PROGRESS", "").lower() == "off"


def duration(seconds: float) -> str:
    """Format seconds: 4 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
