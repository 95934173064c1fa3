"""Draw docs/data_path.svg: what decides, the plan, what acts."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT, GAP = 118, 44, 22
DECIDE = ["calibration", "statistics", "scores", "allocation", "PLAN"]
ACT = ["tables, report", "record", "evaluation", "recovery", "surgery"]
STYLE = """
text { font: 14px system-ui, sans-serif; text-anchor: middle; fill: #1b1f24 }
rect { fill: #eef1f6; stroke: #7a869a; rx: 6px }
path { stroke: #7a869a; stroke-width: 1.6; fill: none; marker-end: url(#tip) }
.note { font-size: 12px; fill: #57606a }
.plan { fill: #ffe9b8 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9da7b3 }
  rect { fill: #21262d } .plan { fill: #5a4510 }
}
"""


def box(name: str, x: int, y: int) -> str:
    kind = ' class="plan"' if name == "PLAN" else ""
    return (
        f'<rect{kind} x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<text x="{x + WIDTH // 2}" y="{y + 27}">{name}</text>'
    )


def drawing() -> str:
    """Two rows: to the right what decides, back to the left what acts."""
    places = [10 + index * (WIDTH + GAP) for index in range(5)]
    upper, lower = 34, 122
    parts = [box(name, x, upper) for name, x in zip(DECIDE, places, strict=True)]
    parts += [box(name, x, lower) for name, x in zip(ACT, places, strict=True)]
    for x in places[:-1]:
        parts.append(f'<path d="M{x + WIDTH} {upper + 22}h{GAP - 4}"/>')
        parts.append(f'<path d="M{x + WIDTH + GAP} {lower + 22}h-{GAP - 4}"/>')
    parts.append(f'<path d="M{places[4] + WIDTH // 2} {upper + HEIGHT}v{lower - upper - HEIGHT - 4}"/>')
    parts.append('<text class="note" x="290" y="20">decides: reads the model, changes nothing</text>')
    parts.append(
        f'<text class="note" x="290" y="{lower + 66}">acts: changes the model, looks at no score</text>'
    )
    size = f'viewBox="0 0 {places[4] + WIDTH + 10} {lower + 78}"'
    tip = (
        '<marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    )
    tip += '<path d="M0 0L6 3L0 6z" style="fill: #7a869a; stroke: none; marker-end: none"/></marker>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>From a text to a plan, from the plan to tables</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", f"<defs>{tip}</defs>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "data_path.svg").write_text(drawing())
