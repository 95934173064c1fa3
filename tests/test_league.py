"""The league: one table per dense model and protocol, with intervals, costs and commands."""

import sys
from dataclasses import replace
from pathlib import Path

import tabled

from cfsp.records.outcome_file import named_outcomes, write_outcomes
from cfsp.records.outcomes import Outcomes
from cfsp.records.record import Record

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments" / "league"))
from league import page


def made(method, value, folder, protocol="a", losses=None, **options):
    one = tabled.record(method, 0.2, value, protocol=protocol)
    one = replace(one, command=f"cfsp criterion={method}", seconds={"plan": 90.0}, **options)
    if losses:
        kept = {"dense": [1.0, 2.0, 3.0], "pruned": losses}
        metrics = {
            model: {
                tabled.NAME: replace(
                    metrics[tabled.NAME], stderr=0.5, outcomes=Outcomes("nats", [*"abc"], kept[model])
                )
            }
            for model, metrics in one.metrics.items()
        }
        one = named_outcomes(replace(one, metrics=metrics))
    write_outcomes(folder, one)
    path = one.save(folder)
    return {path: Record.load(path)}


def test_rows_are_sorted_and_say_what_they_cost(tmp_path):
    records = made("flap", 6.0, tmp_path) | made("cfsp", 5.0, tmp_path, losses=[1.2, 2.21, 3.19])
    records |= made("wanda_sp", 5.5, tmp_path, losses=[1.5, 1.6, 3.0])
    text = page(records)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "method" not in line]
    assert [row.split(" / ")[0].replace("\\", "") for row in rows] == ["| cfsp", "| wanda_sp", "| flap"]
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert cells[1:4] == ["20% of sites", "10.0%", "5.00 ± 0.98"]
    assert cells[4] == "+0.1752 to +0.2248"
    assert cells[5] == "1.5"
    assert rows[1].split("|")[5].endswith("≈ ")
    assert rows[2].split("|")[5].strip() == "-"
    assert "`cfsp criterion=flap`" in text


def test_protocols_do_not_share_a_table(tmp_path):
    records = made("flap", 6.0, tmp_path) | made("cfsp", 5.0, tmp_path, protocol="b")
    text = page(records, ["x.json: no record"])
    assert text.count("\n## ") == 2
    assert "Left out: x.json" in text
