"""Details of the report's page: commands and configs that open on demand, of records and of failures."""

import json
import re
from dataclasses import replace

import pytest
from studies import metric, record, study, training

from cfsp.cli.report import report
from cfsp.records.failures import Failure
from cfsp.report.base import MISSING
from cfsp.report.costs import source_plots
from cfsp.report.names import method_names
from cfsp.report.plots.base import looks
from cfsp.report.plots.recovery import schedule_curve, schedule_curves
from cfsp.report.plots.sites_and_sources import rounds_by_stage
from cfsp.report.shape import activity_section, activity_table, knowledge_section


def write(folder, records):
    for one in records:
        one.save(folder)
    return folder / "records"


def test_failures_beside_the_records_are_shown(tmp_path):
    folder = write(tmp_path, [record()])
    for name, error in (("f1", ValueError("boom")), ("f3", MemoryError())):
        Failure.of(error, name, {"device": "cpu", "seed": 7}, "cfsp x=1", None).save(tmp_path)
    (tmp_path / "failures" / "f2.json").write_text("{}")
    (problem,) = report([folder], tmp_path / "a.html", None, "Study")
    assert "f2.json: no failure" in problem
    text = (tmp_path / "a.html").read_text()
    assert "ValueError: boom" in text
    assert ">MemoryError<" in text
    assert opened(text)[0] == 'cfsp x=1\n\n{\n "device": "cpu",\n "seed": 7\n}'


def opened(text):
    """The details of a page, as its script puts them together."""
    found = []
    for block in re.findall(r'<script type="application/json">(.*?)</script>', text):
        data = json.loads(block)
        for runs in data["texts"]:
            pairs = zip(runs[::2], runs[1::2], strict=True)
            found.append("".join(one for at, n in pairs for one in data["words"][at : at + n]))
    return found


def test_details_are_kept_once_and_none_is_lost(tmp_path):
    found = study()
    report([write(tmp_path, found)], tmp_path / "a.html", None, "Study")
    text = (tmp_path / "a.html").read_text()
    configs = [json.dumps(one.config, indent=1) for one in found]
    assert sorted(opened(text)) == sorted(configs)
    assert sum(map(len, re.findall(r"application/json.*?</script>", text))) < sum(map(len, configs)) / 3


@pytest.mark.slow
def test_knowledge_and_sources_are_drawn(cli, text_file, tmp_path):
    """What the analysis measured and what dynamic recovery drew have figures of their own."""
    words = [
        "sites=[mlp,attention]",
        "criterion=magnitude",
        "allocator=uniform",
        "allocator.protect=knowledge",
    ]
    words += ["recovery=dynamic", "recovery/data=text", f"recovery.data.sources.text.text.paths={text_file}"]
    words += ["recovery.data.window=16", "recovery.data.held_out=8", "recovery.training.max_steps=4"]
    words += ["recovery.training.batch_size=4", "recovery.rounds=1", "sparsity=0.4", "cache=off"]
    path = cli(*words)
    page = tmp_path / "report.html"
    report([path.parent], page, tmp_path / "figures", "test")
    text = page.read_text()
    assert "Knowledge per site" in text
    assert "Sources of dynamic recovery, by round" in text
    names = {one.stem for one in (tmp_path / "figures").glob("*.pdf")}
    assert any(name.endswith("-knowledge") for name in names)
    assert any(name.endswith("-sources") for name in names)


def row(stage, weight, before, dense=1.0):
    losses = {"a": before, "b": dense - 1}
    return {
        "stage": stage,
        "weights": {"a": weight, "b": 1 - weight},
        "dense": {"a": dense, "b": dense},
        "before": losses,
    }


def dynamic(seed, rows, balance=0.3, sparsity=0.2):
    """A record of dynamic recovery whose rounds are these rows."""
    found = record(
        "Chance", sparsity, seed, training={**training(3.0), "rounds": rows}, options={"b": balance}
    )
    return replace(
        found, config={**found.config, "recovery": {**found.config["recovery"], "balance": balance}}
    )


def test_rounds_are_counted_within_their_stage_and_averaged_over_runs():
    first = dynamic(
        0, [row("pretraining", 0.5, 3.0), row("pretraining", 0.7, 2.0), row("instruction", 0.9, 4.0)]
    )
    second = dynamic(1, [row("pretraining", 0.6, 5.0), row("instruction", 0.1, 2.0)])
    found = rounds_by_stage([first, second])
    assert {*found} == {"pretraining", "instruction"}
    one = found["pretraining"]["a"]
    assert (one.numbers, one.weights, one.gaps) == ([1, 2], pytest.approx([0.55, 0.7]), [3.0, 1.0])
    one = found["instruction"]["a"]
    assert (one.numbers, one.weights, one.gaps) == ([1], [0.5], [2.0])
    assert found["pretraining"]["b"].gaps == [0, 0]  # better than the dense model is no gap


def test_other_recoveries_and_sparsities_have_figures_of_sources_of_their_own(tmp_path):
    rows = [row("pretraining", 0.5, 3.0), row("instruction", 0.9, 4.0)]
    found = [dynamic(seed, rows) for seed in (0, 1)]
    found += [dynamic(0, rows, balance=1.0), dynamic(0, rows, sparsity=0.5)]
    plots = source_plots(found, "x", method_names(found))
    assert [plot.caption.split(";")[0] for plot in plots] == ["Mean over 2 runs", "One run", "One run"]
    assert len({plot.label for plot in plots}) == len({plot.name for plot in plots}) == 3
    assert [axes.get_title(loc="left") for axes in plots[0].figure.axes] == [
        *["pretraining"] * 2,
        *["instruction"] * 2,
    ]
    (alone,) = source_plots(found[:2], "x", method_names(found))
    assert alone.name == "x-sources"


def test_analyses_that_protect_other_sites_have_figures_of_their_own():
    notes = {
        "measure": "loss",
        "ratios": [0.5],
        "deviations": {f"m.{block}.mlp": [0.1] for block in range(3)},
    }
    found = []
    for seed, protected in enumerate((["m.0.mlp"], ["m.0.mlp"], ["m.0.mlp", "m.1.mlp"])):
        one = record("Chance", 0.2, seed)
        found.append(replace(one, notes={**one.notes, "knowledge": {**notes, "protected": protected}}))
    section = knowledge_section(found, "tiny", "k")
    assert sorted(plot.caption.split(",")[1] for plot in section.plots) == [
        " of 1 run. Triangle: kept whole.",
        " of 2 runs. Triangle: kept whole.",
    ]


def test_curves_of_trained_masks_are_drawn_beside_recoverys(tmp_path):
    rows = [{"step": step, "loss": 4.0 - step, "removed": step / 10} for step in (1, 2, 3)]
    masks = {**training(3.0), "curve": rows, "held_out_curve": []}
    found = replace(record("Learned", 0.5, 0), schedule_training=masks)
    assert schedule_curve(found, "removed") == ([1, 2, 3], [0.1, 0.2, 0.3])
    assert schedule_curve(found, "curve") == ([1, 2, 3], [3.0, 2.0, 1.0])
    names = {found.id: "learned"}
    figure = schedule_curves([found], names, looks(["learned"]), "share removed")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "training loss, 50% asked",
        "share removed, 50% asked",
    ]
    report([write(tmp_path, [found])], tmp_path / "a.html", None, "Study")
    assert "Trained masks" in (tmp_path / "a.html").read_text()
    report([write(tmp_path / "b", [record()])], tmp_path / "b.html", None, "Study")
    assert "Trained masks" not in (tmp_path / "b.html").read_text()


def test_routed_models_that_were_measured_unlike_share_a_table():
    protocol = {"measure": "active units"}

    def routed(criterion, text, sizes):
        shares = {f"union_share_of_{size}/{text}": 0.5 for size in sizes}
        shares |= {f"active_share/{text}": 0.2, f"active_share_block_0/{text}": 0.2}
        pairs = {name: (metric(1, protocol), metric(one, protocol)) for name, one in shares.items()}
        return record(criterion, **pairs)

    found = [routed("One", "x", (4, 16)), routed("Another", "y", (4,))]
    names = {one.id: one.config["criterion"]["_target_"].rpartition(".")[2] for one in found}
    table = activity_table(found, names)
    assert [*table.columns] == ["method", "active", "union of 4", "union of 16", "GFLOPs"]
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert texts["One"] == ["20.0%", "50.0%", "50.0%", MISSING.text]
    assert texts["Another"] == ["20.0%", "50.0%", MISSING.text, MISSING.text]
    section = activity_section(found, "tiny", "active", names, looks(names.values()))
    assert section.tables[0].rows
