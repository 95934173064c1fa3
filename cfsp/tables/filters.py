"""Filters: select rows of a frame, in the syntax of Hydra's overrides."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
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

    Values are YAML, lists in brackets; `*` and `?` are wildcards. A row without the field equals no
    value, and is neither below nor above one; nor is a row with a target above or below a sparsity.
    """

    field: str
    sign: str
    values: tuple[str | float, ...]

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read an expression. Raises ValueError if it is malformed."""
        parts = EXPRESSION.fullmatch(text)
        if parts is None:
            raise ValueError(f"filter {text!r}: expected field=value, or one of != < <= > >= between them")
        alternatives = re.split(r",(?![^\[]*\])", parts["text"])
        values = tuple(value(one) for one in alternatives)
        if parts["sign"] in ORDERS and (len(values) != 1 or isinstance(values[0], str)):
            raise ValueError(f"filter {text!r}: expected a number after {parts['sign']}")
        return cls(parts["field"], parts["sign"], values)

    def keeps(self, column: pd.Series) -> pd.Series:
        """Return whether to keep each row. Raises ValueError if text is compared with a number."""
        if self.sign in ("=", "!="):
            equal = column.map(lambda found: any(same(found, value) for value in self.values))
            return equal if self.sign == "=" else ~equal
        texts = sorted({one for one in column if isinstance(one, str)})
        numbers = column.map(lambda found: np.nan if isinstance(found, str) else found)
        if texts and numbers.isna().all():
            raise ValueError(f"filter {self}: {self.field} is no number but {', '.join(texts)}")
        return ORDERS[self.sign](numbers.astype(float), float(self.values[0]))

    def __str__(self) -> str:
        return f"{self.field}{self.sign}{','.join(map(str, self.values))}"


def value(text: str) -> str | float:
    """Read one value in the form that it has in a frame; globs stay text."""
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
    """Return whether a row's value matches a filter's."""
    return found == value or (isinstance(found, str) and isinstance(value, str) and fnmatchcase(found, value))


def is_filter(text: str) -> bool:
    """Return whether an argument is a filter rather than a path."""
    return EXPRESSION.fullmatch(text) is not None


def select(frame: pd.DataFrame, filters: Iterable[Filter]) -> pd.DataFrame:
    """Return the rows that all filters keep.

    Raises:
        ValueError: an unknown field, or no row is left; the message lists the field's values.
    """
    for one in filters:
        find_fields([*frame.columns], [one.field])
        column = frame[one.field]
        frame = frame[one.keeps(column)]
        if frame.empty:
            there = ", ".join(map(str, column.dropna().unique()[:12]))
            raise ValueError(f"filter {one}: no record is left; there {one.field} is {there}")
    return frame
