"""Formats: text of users is text in each of them."""

import csv
import io
import re

import pytest
import studies
from tabled import NAME, record

from cfsp.checkpoints import card
from cfsp.records.escapes import code_block, code_span, csv_text, latex_text, markdown_text
from cfsp.tables.compare import comparisons
from cfsp.tables.formats import render
from cfsp.tables.frame import frame

HOSTILE = "<img src=x onerror=alert(1)>\n\n# `a` | [b](c) *d* _e_ ~f~ $g$ &lt; \\h"


def table(*names, **config):
    (one,) = comparisons(frame([record(name, 0.2, 5, **config) for name in names]), NAME, "criterion")
    return one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wanda_sp", "wanda_sp"),
        ("_a_", r"\_a\_"),
        ("a\r\n\tb", "a b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[a](b)|`c`", r"\[a\](b)\|\`c\`"),
        ("# a", r"\# a"),
        ("-0.5 − 1", "-0.5 − 1"),
    ],
)
def test_markdown(text, expected):
    assert markdown_text(text) == expected


def test_a_name_adds_no_line_cell_or_tag_to_markdown():
    plain, hostile = (render([table(name, "f")], "markdown") for name in ("a", HOSTILE))
    assert plain.count("\n") == hostile.count("\n")
    rows = [line for line in hostile.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert not re.search(r"[<>]|(?<!\\)[`\[]", hostile.split("Cells:")[0])


def test_markdown_of_plain_names_is_plain():
    assert "| wanda_sp | **5.00 (−10.0%)** |" in " ".join(
        render([table("wanda_sp", "f")], "markdown").split()
    )


@pytest.mark.parametrize(
    "text", ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "\n=a", "=", "-1+cmd|' /C calc'!A0"]
)
def test_csv_holds_no_formula(text):
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["a=1", "-1", "+.5", "-1e-05", "-", "", "wanda_sp"])
def test_csv_keeps_what_is_none(text):
    assert csv_text(text) == text


def test_csv_of_a_hostile_name():
    text = render([table("f", **{"=cmd": "x"}), table("=HYPERLINK(1)")], "csv")
    rows = [*csv.reader(io.StringIO(text))]
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@" and cell]
    assert [row[rows[0].index("criterion")] for row in rows[1:]] == ["'=hyperlink(1)", "f"]


def test_csv_keeps_negative_numbers():
    one = table("a")
    text = render([type(one)(**{**vars(one), "cells": one.cells.assign(mean=-1.5)})], "csv")
    assert ",-1.5," in text


def test_latex():
    assert latex_text("a_b & 5% <x> [y] *\n\nz") == r"a\_b \& 5\% \textless{}x\textgreater{} {[}y{]} {*} z"
    assert latex_text("± − ≈ ≡ ≥") == r"$\pm$ $-$ $\approx$ $\equiv$ $\geq$"
    page = render([table("a_b|c&d", "f")], "latex")
    assert r"a\_b\textbar{}c\&d & \textbf{5.00 ($-$10.0\%)} \\" in page
    assert r"\toprule" in page
    assert "−" not in page


def test_html():
    page = render([table("a_b|c&d<e>", "f")], "html")
    assert "<td>a_b|c&amp;d&lt;e&gt;</td>" in page
    assert "<strong>5.00 (−10.0%)</strong>" in page


def test_fences_are_longer_than_what_they_hold():
    assert code_span("a") == "`a`"
    assert code_span("`a``b") == "``` `a``b ```"
    assert code_block("a\n```\nb") == "````\na\n```\nb\n````"


def test_a_card_keeps_its_tables_whatever_names_hold():
    one = studies.record()
    metric = studies.metric(5.0, {"text": HOSTILE})
    named = studies.record(**{HOSTILE: (metric, metric)})
    assert card.metric_rows(named).count("\n") == card.metric_rows(one).count("\n") + 1
    assert "<img" not in card.metric_rows(named)


def test_a_card_writes_a_protocol_once_for_metrics_that_share_it():
    protocols = {"a": {"text": "x"}, "b": {"text": "x"}, "c": {"text": "y"}, "d": {"text": "x"}}
    metrics = {name: (studies.metric(5.0, own),) * 2 for name, own in protocols.items()}
    rows = card.metric_rows(studies.record(**metrics)).splitlines()[-4:]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [
        "text x",
        "the same",
        "text y",
        "text x",
    ]


def test_a_card_calls_a_text_what_people_call_it():
    assert card.text_name({"_target_": "cfsp.data.texts.Hub", "name": "wikitext2"}) == "wikitext2"
    assert (
        card.text_name({"_target_": "cfsp.data.texts.Files", "paths": ["/a/b.txt", "c.txt"]})
        == "b.txt, c.txt"
    )
    assert card.text_name({"_target_": "cfsp.data.texts.Stdlib", "split": "train"}) == "Stdlib"
