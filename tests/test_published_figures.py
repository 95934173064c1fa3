"""Papers' figures: well-formed data, matched with like alone."""

import io
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from cfsp.tables.compare import Comparison, wide
from cfsp.tables.formats import render
from cfsp.tables.published_figures import COLUMNS, TRUST, against, find_folder, load_papers, with_papers

FOLDER = Path(__file__).parent.parent / "results" / "papers"
if not FOLDER.is_dir():
    pytest.skip("reads results/papers, which is not here", allow_module_level=True)
PAPERS = load_papers(FOLDER)
FLAP = "FLAP, arXiv 2312.11983"


def ours(window=128, model="llama-7b", rows=("flap", "wanda_sp"), **changes):
    cells = pd.DataFrame(
        [
            {"criterion": row, "sparsity": share, "mean": 20.0, "std": 0.5, "n": 3, "removed": share}
            for row in rows
            for share in (0.2, 0.5)
        ]
    )
    one = Comparison(
        metric="perplexity/wikitext2:test",
        model=model,
        dense=12.6,
        better="lower",
        protocol={"window": window, "stride": window, "bos": False},
        rows=["criterion"],
        columns=["sparsity"],
        cells=cells.assign(source="", paper=float("nan")),
    )
    return replace(one, **changes)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.csv")), ids=lambda path: path.stem)
def test_file_is_well_formed(path):
    figures = pd.read_csv(path, keep_default_na=False)
    assert tuple(figures.columns) == COLUMNS
    for column in ("method", "model", "sparsity_means", "metric", "source"):
        assert figures[column].str.strip().ne("").all(), column
    assert set(figures["trust"]) <= set(TRUST)
    assert (figures["value"] > 0).all()
    assert figures["sparsity"].between(0, 1, inclusive="left").all()
    assert (figures["value"][figures["metric"].str.startswith(("acc", "f1", "exact"))] < 1).all()
    perplexities = figures[figures["metric"].str.startswith("perplexity/wikitext2")]
    assert perplexities["window"].ne("").all(), "a perplexity without its window means nothing"


def test_no_figure_stands_twice():
    key = ["method", "model", "sparsity", "metric", "window", "source"]
    assert not PAPERS.duplicated(key).any()


def test_averages_are_those_of_the_tasks():
    tasks = "boolq+piqa+hellaswag+winogrande+arc_easy+arc_challenge+openbookqa"
    for _, figures in PAPERS.groupby(["method", "model", "sparsity", "source"]):
        average = figures[figures["metric"] == f"accuracy_average/{tasks}"]
        single = figures[figures["metric"].str.fullmatch(r"acc(_norm)?/(" + tasks.replace("+", "|") + ")")]
        if len(average) and len(single) == 7 and "60.08" not in average["note"].iloc[0]:
            assert single["value"].mean() == pytest.approx(average["value"].iloc[0], abs=2e-4)


def test_rows_of_papers_show_source_and_meaning_of_sparsity():
    one = with_papers(ours(), PAPERS, None)
    table = wide(one)
    (row,) = [name for name in table.index if name.startswith("FLAP")]
    assert row.endswith(", of attention and MLP weights")
    assert table.loc[row].tolist() == ["14.62", "31.80"]
    assert [*table.index[:2]] == ["flap", "wanda_sp"]
    number = row.split()[1].rstrip(",")
    (note,) = [note for note in one.notes if note.startswith(number)]
    assert FLAP in note
    assert note.endswith("dense 12.62 there")


def test_a_figure_by_others_says_so():
    one = with_papers(ours(window=4096, model="Llama-2-7b-hf"), PAPERS, None)
    rows = [name for name in one.cells["criterion"] if name.startswith(("FLAP", "Týr"))]
    assert {name.split(" [")[0] for name in rows} == {"FLAP, by others", "Týr"}


def test_csv_names_the_source():
    read = pd.read_csv(io.StringIO(render([with_papers(ours(), PAPERS, None)], "csv")))
    theirs = read[read["source"].notna()]
    assert set(theirs["source"]) <= set(PAPERS["source"])
    assert theirs[["n", "removed"]].isna().all(axis=None)
    assert read["n"].dropna().eq(3).all()


def test_papers_are_never_bold():
    page = render([with_papers(ours(), PAPERS, None)], "markdown")
    assert all("**" not in line for line in page.splitlines() if line.startswith("| FLAP"))


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 512},
        {"model": "reference"},
        {"metric": "perplexity/stdlib:test"},
        {"protocol": {"window": 128, "stride": 64, "bos": False}},
    ],
)
def test_only_like_is_shown(changes):
    one = with_papers(ours(**changes), PAPERS, None)
    assert (one.cells["source"] == "").all()
    assert one.notes[-1].startswith("papers: nothing for")


def test_model_may_be_named():
    assert len(with_papers(ours(model="copy"), PAPERS, "LLaMA-7B").cells) > 4


def test_difference_to_a_paper():
    one = against(ours(), PAPERS, None, "")
    assert wide(one).loc["flap", "20% removed"] == "14.62 / 20.00 ± 0.50 / +5.38 (−20.0%)"
    assert wide(one).loc["flap", "50% removed"].startswith("31.80 / 20.00 ± 0.50 / −11.80")
    assert any(FLAP in note for note in one.notes)


def test_row_may_be_held_against_a_method_of_another_name():
    one = against(ours(rows=["taylor"]), PAPERS, None, "taylor=LLM-Pruner Element1")
    assert one.cells["paper"].tolist() == [19.09, 112.44]
    with pytest.raises(ValueError, match="expected ROW=METHOD with a method of"):
        against(ours(), PAPERS, None, "taylor=Nothing")


def test_a_pair_may_name_any_field_of_the_row():
    one = ours(rows=["taylor"])
    orders = [one.cells.assign(order=order) for order in ("first", "second")]
    one = replace(one, rows=["criterion", "order"], cells=pd.concat(orders, ignore_index=True))
    pairs = "first=LLM-Pruner Element1,second=LLM-Pruner Element2"
    assert against(one, PAPERS, None, pairs).cells["paper"].tolist() == [19.09, 112.44, 19.77, 106.07]
    only = against(one, PAPERS, None, "first=LLM-Pruner Element1").cells["paper"]
    assert only.notna().tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="rows taylor/first and taylor/second; expected a pair or a filter"):
        against(one, PAPERS, None, "taylor=LLM-Pruner Element1")
    with pytest.raises(ValueError, match="all of row taylor/first; expected one of them"):
        against(one, PAPERS, None, "taylor=FLAP,first=LLM-Pruner Element1")


def test_folder_is_found_above_the_records(tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.csv").write_text("method\n")
    assert find_folder(None, [str(tmp_path / "study" / "records")]) == tmp_path / "papers"
    with pytest.raises(ValueError, match=r"a\.csv: columns method; expected method, model"):
        load_papers(tmp_path / "papers")
    with pytest.raises(ValueError, match="expected --papers=FOLDER"):
        find_folder(str(tmp_path / "none"), [])


def test_columns_must_be_sparsities():
    with pytest.raises(ValueError, match="expected sparsity alone"):
        with_papers(ours(columns=["criterion"]), PAPERS, None)
