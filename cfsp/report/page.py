"""The page: render sections with a template, with styles and script inline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cfsp.report.base import Section
from cfsp.report.plots.base import svg, themed

FOLDER = Path(__file__).parent


def page(title: str, sections: Sequence[Section]) -> str:
    """Return HTML that loads no other files. The template escapes all texts from records."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    names = (f"f{number}" for number in count())  # short, because a figure repeats its name at every mark
    return templates.get_template("page.html.j2").render(
        title=title,
        chapters=[(model, [*members]) for model, members in groupby(sections, lambda one: one.model)],
        style=Markup((FOLDER / "page.css").read_text()),
        script=Markup((FOLDER / "page.js").read_text()),
        draw=lambda plot: Markup(themed(svg(plot.figure, next(names)))),  # matplotlib escapes the text in it
    )
