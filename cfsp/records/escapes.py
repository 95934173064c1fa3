"""Escapes: text of users, names and paths above all, as the text that it is in Markdown, LaTeX and CSV."""

from __future__ import annotations

import re

MARKDOWN = str.maketrans(
    {**{sign: f"\\{sign}" for sign in r"\`*[]|$~"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{sign: f"{{{sign}}}" for sign in "[]*"},  # behind a \\ they would be its argument
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
    }
)
FORMULA = re.compile(r"[=+\-@\t\r\n]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def markdown_text(text: str) -> str:
    """Text for one line of Markdown: no HTML, link, code, cell or emphasis begins in it.

    An underscore inside a word stays, because Markdown leaves it alone.
    """
    line = " ".join(text.split()).translate(MARKDOWN)
    return re.sub(r"(?<!\w)_|_(?!\w)|^[#+-](?=\s|#)", r"\\\g<0>", line)


def latex_text(text: str) -> str:
    """Text for one line of LaTeX."""
    return " ".join(text.split()).translate(LATEX)


def csv_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe stands before one that begins as such.

    Numbers, and the dash of what is absent, stay as they are.
    """
    plain = text == "-" or NUMBER.fullmatch(text) or not FORMULA.match(text)
    return text if plain else f"'{text}"


def code_block(text: str) -> str:
    """A fenced block of Markdown whose fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def code_span(text: str) -> str:
    """A code span of Markdown, of one line."""
    line = " ".join(text.split())
    longest = max(map(len, re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
