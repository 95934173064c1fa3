"""What a routed run says of itself, on its card, in the terminal and in the report: nothing of pruning."""

import io
import re
from dataclasses import replace

import pytest
from families import words
from rich.console import Console
from routed_models import plan_for, routed
from routed_studies import routed_record
from studies import record

import cfsp
from cfsp.checkpoints.card import model_card
from cfsp.cli.main import how_to_load
from cfsp.cli.report import report, study_sections
from cfsp.plans.plan import Cut
from cfsp.report.names import method_names
from cfsp.report.plots.base import looks
from cfsp.running.summary import outcome_of, summary, sweep_summary

PRUNING = re.compile(
    r"prun|\bcut\b|removed|kept|-\d+\.\d\d%|512 of 512|blocks differ|criterion|allocator", re.IGNORECASE
)
"""What is said of a model that units are removed from."""


CURVE = [{"step": step, "loss": 4.0 - step, "removed": step / 10} for step in (1, 2)]
LEARNED = {"curve": CURVE, "held_out_curve": [], "trainable": 1, "tokens": 1, "steps": 2, "seconds": 1.0}


def told(shown):
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    return console.file.getvalue()


def card(one, needs_remote_code=True):
    one = replace(
        one,
        config=one.config | {"model": one.config["model"] | {"head": "causal_lm"}},
        environment={"versions": dict.fromkeys(("cfsp", "torch", "transformers"), "1")},
    )
    one.config["calibration"] |= {"text": {"_target_": "cfsp.data.stdlib.Stdlib"}, "seqlen": 128}
    return model_card(one, needs_remote_code, license=None)


def test_edits_say_whether_units_are_chosen_per_token():
    assert Cut("a", 4, (0, 1)).routing is None
    for route in plan_for(routed()).edits:
        assert route.routing == {"router": "LearnedRouter", "experts": route.units // 4, "size": 4}


def test_the_card_of_a_routed_model_speaks_of_routers():
    text = card(routed_record("lte", 0.5, 0.505))
    for line in (
        "# tiny, routed",
        "- dynamic-sparsity",
        "by cfsp: lte (schedule routing)",
        "active share: 50% asked, 50.5% measured",
        "Each of 3 routers chooses among 64 experts of 8 units.",
        "| parameters | dense | routed | added |",
        "| of the model | 1,000,000 | 1,021,000 | 2.10% |",
        "| of the sites | 96 | 96 | 0.00% |",
        "the model loads as a dense one",
        "trust_remote_code=True)  # its MLPs are routed",
        "`plan.json` lists the router of every MLP",
    ):
        assert line in text, line
    assert not PRUNING.search(text.replace("No unit is removed", "")), PRUNING.search(text)


def test_the_card_of_a_pruned_model_is_as_it_was():
    text = card(record("CFSP", 0.2))
    for line in (
        "# tiny, pruned",
        "- structured-pruning",
        "without 10.0% of its parameters, by cfsp: criterion `cfsp`",
        "| site | kept | of |\n|---|---|---|\n| model.layers.0.mlp | 80 | 100 |",
        "| model.layers.2.mlp | 80 | 100 |\n\n| metric | dense | pruned |",
        "# its blocks differ",
        "`plan.json` lists what every site keeps",
    ):
        assert line in text, line
    assert "rout" not in text


def test_the_terminal_shows_what_a_routed_run_was_asked_for_and_uses():
    text = told(summary(routed_record("teal", 0.5, 0.505)))
    assert "tiny: teal (schedule routed_once)" in text
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if "│" in line}
    rows = {name: [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert rows["units that a token uses"] == ["100.0%", "50.5%", "(asked 50%)"]
    assert rows["routed MLPs"] == ["0", "3", "64 experts of 8 units each"]
    assert rows["parameters of the model"] == ["1,000,000", "1,021,000", "+2.10%"]
    assert rows["parameters of the sites"] == ["96", "96", "+0.00%"]
    assert "routed" in text.splitlines()[2]
    assert not PRUNING.search(text), PRUNING.search(text)


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, "not measured"), ({"schedule_training": LEARNED | {"reached": 0.48}}, "52.0% in training")],
)
def test_a_share_that_was_not_measured_is_not_made_up(options, shown):
    assert shown in told(summary(routed_record("lte", 0.5, **options)))


def test_a_sweep_shows_active_shares(tmp_path):
    found = [outcome_of(one, tmp_path, True) for one in (routed_record("teal", 0.5, 0.505), record("CFSP"))]
    text = told(sweep_summary(found, "results"))
    assert "50.5% active" in text
    assert "10.0%" in text
    assert "-2.1%" not in text
    assert "removed" not in str(found[0])
    assert "10.0% of the model removed" in str(found[1])


def test_a_saved_routed_model_says_how_it_loads(tmp_path):
    model = routed()
    cfsp.save(tmp_path, model, words(), plan_for(model))
    hint = "; its MLPs are routed: without trust_remote_code=True it loads as a dense model"
    assert how_to_load(tmp_path) == hint


def titles(found):
    names = method_names(found)
    return [one.title for one in study_sections(found, "tiny", names, looks(names.values()))[1]]


def test_the_report_draws_routers_and_no_widths_of_routed_runs(tmp_path):
    lte, cut = routed_record("lte", 0.5, 0.5, schedule_training=LEARNED), record("CFSP")
    assert "Kept widths" not in titles([lte])
    assert {"Kept widths", "Trained routers"} <= {*titles([lte, cut])}
    assert "Trained masks" not in titles([lte, cut])
    assert "Trained masks" in titles([cut, replace(record("Movement", 0.3), schedule_training=LEARNED)])
    report([lte.save(tmp_path).parent], tmp_path / "page.html", None, "Study")
    page = (tmp_path / "page.html").read_text()
    for line in ("Trained masks", "the model is cut", "Not measured: kept widths", "Kept widths"):
        assert line not in page
    assert "No weight is removed" in page
