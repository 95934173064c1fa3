"""What readers see: the best of each size, methods in order, no path of a disk, light and dark."""

import math
import re
from dataclasses import replace

from studies import record

from cfsp.cli.report import report
from cfsp.records.failures import Failure
from cfsp.report.groups import contests, perplexities, points, ranked
from cfsp.report.names import method_names
from cfsp.report.page import FOLDER
from cfsp.report.plots.base import THEME, looks, svg, themed
from cfsp.report.plots.quality import quality_by_size
from cfsp.report.quality import quality_table


def write(folder, records):
    for one in records:
        one.save(folder)
    return folder / "records"


def sized(one, removed, value):
    """The record with a measured share removed and a perplexity."""
    one.metrics["pruned"]["perplexity/x"] = replace(one.metrics["pruned"]["perplexity/x"], value=value)
    return replace(one, sparsity=one.sparsity | {"model": removed})


def test_each_size_has_a_best_of_its_own():
    shares = {"CFSP": (0.12, 20.0), "FLAP": (0.125, 21.0), "Taylor": (0.17, 30.0), "Chance": (0.175, 29.0)}
    found = [sized(record(name, 0.2), *pair) for name, pair in shares.items()]
    (measure,) = perplexities(found)
    made = contests(points(found, method_names(found)), measure)
    assert [[point.method for point in one.best] for one in made] == [["cfsp"], ["chance"]]


def test_a_chain_of_sizes_without_a_gap_has_no_best():
    found = [sized(record(name, 0.2), 0.1 + len(name) / 125, 9.0) for name in ("Abcd", "Abcde", "Abcdef")]
    (measure,) = perplexities(found)
    (contest,) = contests(points(found, method_names(found)), measure)
    assert (contest.best, contest.why_none) == ((), "13.2% to 14.8% removed")


def test_methods_stand_in_the_order_of_values_at_the_largest_sparsity(tmp_path):
    values = {"Taylor": (11.0, 40.0), "FLAP": (12.0, 30.0), "CFSP": (13.0, 20.0), "Depth": (9.0, math.nan)}
    found = [
        sized(record(name, share), share / 2, value)
        for name, pair in values.items()
        for share, value in zip((0.2, 0.5), pair, strict=True)
    ]
    best_first = ["cfsp", "flap", "taylor", "depth"]
    (measure,) = perplexities(found)
    names = ranked(method_names(found), [measure])
    assert [*dict.fromkeys(names.values())] == best_first
    figure = quality_by_size(measure, names, looks(names.values()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == best_first
    rows = [(row[1].text, row[0].text) for row in quality_table(measure, names).rows]
    assert rows[:4] == [("50%", name) for name in best_first]
    assert rows[4:] == [("20%", name) for name in ("depth", "taylor", "flap", "cfsp")]


def test_no_path_of_the_disk_is_on_the_page(tmp_path):
    model = "/home/jo/models/llama/checkpoints/step-5/hf"
    found = [record(name, path=model, options={"text": [f"/data/jo/{name}.txt"]}) for name in ("A", "B", "B")]
    found[2] = record("B", path=model, options={"text": ["/data/ann/B.txt"]})
    found = [replace(one, command=f"cfsp model.path={model} results='/scratch/jo/r'") for one in found]
    failed = Failure.of(OSError(f"no {model}/x.json"), "f", {"path": model}, f"cfsp model.path={model}", None)
    failed.save(tmp_path / "jo")
    folder = write(tmp_path / "jo", found)
    (folder / "broken.json").write_text("{")
    report([folder], tmp_path / "a.html", None, "Study")
    text = (tmp_path / "a.html").read_text()
    for absolute in ("/home", "/data/", "/scratch", str(tmp_path)):
        assert absolute not in text, absolute
    assert '<h2 class="model">step-5</h2>' in text
    assert [*dict.fromkeys(method_names(found).values())] == ["a", "b(jo/B.txt)", "b(ann/B.txt)"]


def test_labels_keep_their_digits_and_colours_follow_the_theme():
    found = [sized(record("FLAP"), 0.1, 11.0), sized(record("CFSP"), 0.1, 12.0)]
    found[0].metrics["dense"]["perplexity/x"] = replace(
        found[0].metrics["dense"]["perplexity/x"], value=4.358
    )
    names = method_names(found)
    measure = next(one for one in perplexities(found) if one.dense == 4.358)
    plain = svg(quality_by_size(measure, names, looks(names.values())), "mine")
    assert "var(" not in plain  # it may be a file of its own
    element = themed(plain)
    assert ">dense 4.358<" in element
    assert not re.findall(r"#(?:[0-9a-f]{6})\b", element)
    style = (FOLDER / "page.css").read_text()
    light, dark = (style.split("@media screen and (prefers-color-scheme: dark)")[place] for place in (0, 1))
    used = set(re.findall(r"var\((--\w+)\)", element))
    assert {"--ink", "--card", "--soft"} <= used
    for name in {*used, *(f"--{one}" for one in THEME.values())}:
        assert f"{name}:" in light.split("}")[0], name
        assert f"{name}:" in dark.split("}")[0], name
