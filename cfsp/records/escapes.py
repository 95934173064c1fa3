"""Escapes: users' text, such as names and paths, shown literally in Markdown, LaTeX and CSV."""

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
        "≈": r"$\approx$",
        "≡": r"$\equiv$",
        "≥": r"$\geq$",
    }
)
FORMULA = re.compile(r"[=+\-@\t\r\n]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def markdown_text(text: str) -> str:
    """Escape text for one line of Markdown, so that it begins no HTML, link, code, cell or emphasis.

    An underscore inside a word is not escaped, because Markdown leaves it alone.
    """
    line = " ".join(text.split()).translate(MARKDOWN)
    return re.sub(r"(?<!\w)_|_(?!\w)|^[#+-](?=\s|#)", r"\\\g<0>", line)


def latex_text(text: str) -> str:
    """Escape text for one line of LaTeX."""
    return " ".join(text.split()).translate(LATEX)


def csv_text(text: str) -> str:
    """Escape a cell of CSV: put an apostrophe before text that a spreadsheet would take for a formula.

    Numbers, and the dash of an absent value, are unchanged.
    """
    plain = text == "-" or NUMBER.fullmatch(text) or not FORMULA.match(text)
    return text if plain else f"'{text}"


def code_block(text: str) -> str:
    """Return a fenced block of Markdown whose fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def code_span(text: str) -> str:
    """Return a code span of Markdown, on one line."""
    line = " ".join(text.split())
    longest = max(map(len, re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
