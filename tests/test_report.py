"""Reports: names, groups and figures are honest, and nothing in a record can break the page."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from random import Random

import pytest
from studies import latency, record, study, training, zero_shot

from cfsp.cli.report import main, report, study_titles
from cfsp.report.base import number, spread
from cfsp.report.groups import Spread, contests, pareto, perplexities, points, studies, zero_shots
from cfsp.report.names import method_names
from cfsp.report.plots.base import looks, show_logarithmic, svg
from cfsp.report.plots.quality import quality_by_size

HOSTILE = "</script><script>alert(1)</script>&\"'<img src=x onerror=alert(1)>$\\frac$"


def write(folder, records):
    for one in records:
        one.save(folder)
    return folder / "records"


def test_names_leave_out_what_is_the_same():
    found = [record("FLAP"), record("Magnitude"), record("Magnitude", 0.5, seed=3)]
    assert [*method_names(found).values()] == ["flap", "magnitude", "magnitude"]


def test_names_tell_all_methods_apart():
    found = [
        record("FLAP"),
        record("Magnitude", options={"weights": "all"}),
        record("Magnitude", options={"weights": "consumers", "norm": 2.0}),
        record("Magnitude", options={"weights": "consumers", "norm": 1.0}),
        record("FLAP", allocator="GlobalRank"),
        record("FLAP", training=training(1.0)),
    ]
    names = method_names(found)
    assert names[found[1].id] == "magnitude(all) / uniform"
    assert names[found[2].id] == "magnitude(consumers, norm=2.0) / uniform"
    assert names[found[5].id] == "flap / uniform / lora"
    assert len(set(names.values())) == len(found)


def test_names_need_no_criterion_where_there_is_one():
    found = [record("FLAP"), record("FLAP", training=training(1.0))]
    assert [*method_names(found).values()] == ["none", "lora"]
    assert [*method_names(found[:1]).values()] == ["flap"]


def test_a_part_that_a_record_is_older_than():
    old = record("FLAP")
    old = replace(old, config={key: value for key, value in old.config.items() if key != "recovery"})
    assert [*method_names([old, record("FLAP", 0.5)]).values()] == ["flap", "flap"]


def test_protocols_never_share_an_axis():
    found = [record("FLAP"), record("FLAP", window=256), record("Magnitude")]
    assert [len(one.records) for one in perplexities(found)] == [2, 1]
    assert sorted(map(len, studies(found))) == [1, 2]
    other = record("CFSP")
    other.metrics["dense"]["perplexity/x"] = replace(other.metrics["dense"]["perplexity/x"], value=11.0)
    assert len(perplexities([*found[::2], other])) == 2
    assert len(studies([record(path="a"), record(path="b")])) == 2


def test_records_without_any_measure_are_together():
    bare = [replace(record(seed=seed), metrics={"dense": {}, "pruned": {}}) for seed in (0, 1)]
    assert [len(one) for one in studies([*bare, record("FLAP")])] == [1, 2]


def test_zero_shot_is_the_mean_of_what_papers_report():
    found = [record(**zero_shot(0.5)), record(seed=1)]
    metrics = found[0].metrics["pruned"]
    metrics["acc/piqa"] = replace(metrics["acc/piqa"], value=0.0)
    metrics["acc/boolq"] = replace(metrics["acc/boolq"], value=0.7)
    (measure,) = zero_shots(found)
    assert measure.names == ("acc/boolq", "acc_norm/piqa")
    assert measure.records == (found[0],)
    assert measure.read(found[0]) == pytest.approx(0.6)
    assert measure.dense == pytest.approx(0.8)


def test_seeds_are_one_point():
    found = study()
    (measure,) = perplexities(found)
    cells = points(found, method_names(found))
    assert [len(cell.records) for cell in cells] == [3] * 6
    assert cells[0].spread(measure.read).std == pytest.approx(0.25)
    for contest in contests(cells, measure):  # chance, with and without recovery, is worse by nothing
        assert [point.method.split(" ")[0] for point in contest.best] == ["chance", "chance"]
        assert contest.why_none == ""


def test_best_needs_rivals_that_removed_alike_shares(tmp_path):
    lone, less, more = record("FLAP", 0.2), record("CFSP", 0.5), record("Magnitude", 0.5)
    less = replace(less, sparsity=less.sparsity | {"model": 0.078})
    found = [lone, less, replace(more, sparsity=more.sparsity | {"model": 0.127})]
    (measure,) = perplexities(found)
    made = contests(points(found, method_names(found)), measure)
    assert [(one.wanted.amount, one.best, one.why_none) for one in made] == [
        (share, (), "no rival") for share in (0.2, 0.5, 0.5)
    ]
    report([write(tmp_path, found)], tmp_path / "a.html", None, "Study")
    text = (tmp_path / "a.html").read_text()
    assert "– (no rival)" in text
    assert 'class="best"' not in text


def test_front_is_what_nothing_beats():
    dice = Random(0)
    pairs = [(dice.randrange(20), dice.randrange(20)) for _ in range(200)] + [(float("nan"), -1.0)]
    front = [pairs[index] for index in pareto(pairs)]
    assert front == sorted(set(front))
    for x, y in pairs[:-1]:
        assert any(a <= x and b <= y for a, b in front)
        assert not any((a, b) != (x, y) and a <= x and b <= y for a, b in front) or (x, y) not in front


def test_looks_differ_and_do_not_depend_on_order():
    methods = [f"{criterion} / {rest}" for criterion in "abcde" for rest in range(12)]
    found = looks(methods)
    assert len(set(found.values())) == len(methods)
    assert looks(reversed(methods)) == found
    assert found["a / 0"].color == found["a / 11"].color != found["b / 0"].color


def test_cells_sort_by_what_they_show():
    assert spread(Spread(33.9712, 0.1149, 3)).text == "33.97 ± 0.11"
    assert spread(Spread(33.9712, 0.1149, 3)).order == 33.9712
    assert spread(Spread(float("inf"), None, 1)).order is None
    assert number(None).order is None
    assert number(1234, ",d").text == "1,234"


class Ids(HTMLParser):
    """Ids, what is loaded from elsewhere, and the tags that should not be there."""

    def __init__(self):
        super().__init__()
        self.ids, self.loads, self.tags, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.insert(0, dict(attributes).get("type"))
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.loads.append(value)


def parsed(text):
    found = Ids()
    found.feed(text)
    return found


def test_page_has_every_section_and_loads_nothing(tmp_path):
    assert report([write(tmp_path, study())], tmp_path / "a.html", tmp_path / "figures", "Study") == []
    text = (tmp_path / "a.html").read_text()
    sections = "overview perplexity-1 zero-shot-1 widths importance latency-1 recovery runs".split()
    page = parsed(text)
    for name in sections:
        assert any(one.endswith(name) for one in page.ids), name
    assert len(page.ids) == len(set(page.ids))
    assert page.loads == []
    assert "@import" not in text
    assert "url(http" not in text
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(references) <= set(page.ids)
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {f"tiny-widths.{kind}" for kind in ("pdf", "png")} <= figures
    assert len(figures) == 2 * text.count("<figure>") == 14


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(tmp_path):
    folder = write(tmp_path, study())
    for name in ("a", "b"):
        report([folder], tmp_path / f"{name}.html", tmp_path / name, "Study")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_hostile_strings_are_text(tmp_path):
    one = record("FLAP", path=HOSTILE, options={"metric": HOSTILE}, **latency(0.5))
    other = record("FLAP", path=HOSTILE, options={"metric": "plain"}, training=training(1.0))
    report([write(tmp_path, [one, other])], tmp_path / "a.html", None, HOSTILE)
    text = (tmp_path / "a.html").read_text()
    assert html.escape(HOSTILE, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    page = parsed(text)
    assert page.scripts == [None, "application/json"]
    assert "img" not in page.tags


def test_svg_ids_are_the_figures_own():
    found = study()
    names = method_names(found)
    (measure,) = perplexities(found)
    element = svg(quality_by_size(measure, names, looks(names.values())), "mine")
    assert element.startswith("<svg")
    assert all(one.startswith("mine-") for one in re.findall(r'\bid="([^"]+)"', element))


def test_a_perplexity_that_is_no_number_is_never_the_best(tmp_path):
    found = [record("CFSP"), record("FLAP"), record("Taylor")]
    for one, value in zip(found, (float("nan"), float("inf")), strict=False):
        one.metrics["pruned"]["perplexity/x"] = replace(one.metrics["pruned"]["perplexity/x"], value=value)
    (measure,) = perplexities(found)
    (contest,) = contests(points(found, method_names(found)), measure)
    assert [point.method for point in contest.best] == ["taylor"]
    assert report([write(tmp_path, found)], tmp_path / "a.html", None, "Study") == []


def test_scale_is_logarithmic_only_where_values_span_much():
    class Axes:
        def set_yscale(self, name):
            raise AssertionError(name)

    show_logarithmic(Axes(), [10, 29, float("inf")])
    with pytest.raises(AssertionError, match="log"):
        show_logarithmic(Axes(), [10, 31])


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    folder = write(tmp_path, [record()])
    (folder / "broken.json").write_text('{"id": ')
    (folder / "list.json").write_text("null")
    with pytest.raises(SystemExit) as exit_code:
        main([str(folder), "-o", str(tmp_path / "a.html")])
    assert exit_code.value.code == 1
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'a.html'}\n"
    assert [line.count(".json: no record") for line in err.splitlines()] == [1, 1]
    text = (tmp_path / "a.html").read_text()
    assert "Could not be read" in text
    assert "broken.json" in text
    assert "list.json" in text


def test_nothing_to_show_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main([str(tmp_path / "records"), "-o", str(tmp_path / "a.html")])
    assert exit_code.value.code == 1
    assert re.fullmatch(r"cfsp-report: error: .*: no records; expected .*\n", capsys.readouterr().err)
    assert not (tmp_path / "a.html").exists()


def test_a_record_in_two_folders_counts_once(tmp_path):
    older = replace(record(), created="2029-01-01T00:00:00+00:00")
    folders = [write(tmp_path / "a", [record()]), write(tmp_path / "b", [older])]
    report(folders, tmp_path / "a.html", None, "Study")
    text = (tmp_path / "a.html").read_text()
    assert "2030-01-01" in text
    assert "2029-01-01" not in text


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit_code:
        main(["--help"])
    assert exit_code.value.code == 0
    assert "cfsp-report results/records" in capsys.readouterr().out


def test_studies_of_one_model_and_text_are_named_by_what_differs():
    groups = studies([record(), record(window=64)])
    assert study_titles(groups) == ["tiny on x, window 128", "tiny on x, window 64"]
    assert study_titles([groups[0], groups[0]]) == ["tiny on x", "tiny on x (2)"]
