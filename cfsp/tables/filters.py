"""Filters: which rows of a frame count, in the words of Hydra's overrides."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cfsp.tables.frame import find_fields, leaf

ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
EXPRESSION = re.compile(r"(?P<field>[\w.@/]+)(?P<sign>!=|<=|>=|=|<|>)(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """`field=a,b` keeps rows whose field is any of these, `!=` the others; `<`, `<=`, `>`, `>=` compare.

    Values are what YAML reads, lists in brackets; `*` and `?` in one stand for anything. A row that
    lacks the field is not equal to any value, and neither below nor above one.
    """

    field: str
    sign: str
    values: tuple[str | float, ...]

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read an expression. Raises ValueError for one that makes no sense."""
        parts = EXPRESSION.fullmatch(text)
        if parts is None:
            raise ValueError(f"filter {text!r}: expected field=value, or one of != < <= > >= between them")
        alternatives = re.split(r",(?![^\[]*\])", parts["text"])
        values = tuple(value(one) for one in alternatives)
        if parts["sign"] in ORDERS and (len(values) != 1 or isinstance(values[0], str)):
            raise ValueError(f"filter {text!r}: expected a number after {parts['sign']}")
        return cls(parts["field"], parts["sign"], values)

    def keeps(self, column: pd.Series) -> pd.Series:
        """Whether each row stays. Raises ValueError where text is compared with a number."""
        if self.sign in ("=", "!="):
            equal = column.map(lambda found: any(same(found, value) for value in self.values))
            return equal if self.sign == "=" else ~equal
        texts = sorted({one for one in column if isinstance(one, str)})
        if texts:
            raise ValueError(f"filter {self}: {self.field} is no number but {', '.join(texts)}")
        return ORDERS[self.sign](column.astype(float), float(self.values[0]))

    def __str__(self) -> str:
        return f"{self.field}{self.sign}{','.join(map(str, self.values))}"


def value(text: str) -> str | float:
    """One value as it stands in a frame; globs stay text."""
    if text[:1] != "[" and set(text) & set("*?"):
        return text
    try:
        whole = OmegaConf.create(f"value: {text}")
        found = OmegaConf.to_container(whole)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"filter value {text!r}: not YAML ({' '.join(str(error).split())})") from error
    assert isinstance(found, dict), "YAML of a key is a mapping"
    return leaf(found["value"])


def same(found: object, value: str | float) -> bool:
    """Whether a row's value is the one that a filter names."""
    return found == value or (isinstance(found, str) and isinstance(value, str) and fnmatchcase(found, value))


def is_filter(text: str) -> bool:
    """Whether an argument is a filter rather than a place."""
    return EXPRESSION.fullmatch(text) is not None


def select(frame: pd.DataFrame, filters: Iterable[Filter]) -> pd.DataFrame:
    """The rows that all filters keep.

    Raises:
        ValueError: an unknown field, or nothing is left; the message says what there was.
    """
    for one in filters:
        find_fields([*frame.columns], [one.field])
        column = frame[one.field]
        frame = frame[one.keeps(column)]
        if frame.empty:
            there = ", ".join(map(str, column.dropna().unique()[:12]))
            raise ValueError(f"filter {one}: no record is left; there {one.field} is {there}")
    return frame
