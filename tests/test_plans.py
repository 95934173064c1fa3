"""Plans: pure data that survives the disk."""

import json

import pytest
import torch

from cfsp.plans.plan import Cut, PrunePlan

PLAN = PrunePlan(
    (Cut("a", 4, (0, 2), torch.tensor([0.5, -1.0, 2.0, 1e-7])), Cut("b", 3, (1,))),
    {"block_statistics": {"block_angular": [0.25, 0.5]}},
)


def test_plan_survives_the_disk(tmp_path):
    PLAN.save(tmp_path)
    loaded = PrunePlan.load(tmp_path)
    assert loaded.notes == PLAN.notes
    assert [(cut.site, cut.units, cut.keep) for cut in loaded.edits] == [("a", 4, (0, 2)), ("b", 3, (1,))]
    assert torch.equal(loaded.edits[0].fill, PLAN.edits[0].fill)
    assert loaded.edits[1].fill is None


def test_saving_over_a_plan_leaves_nothing_of_it(tmp_path):
    PLAN.save(tmp_path)
    PrunePlan((Cut("b", 3, (1,)),)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_removed_is_the_rest():
    assert PLAN.edits[0].removed == (1, 3)


@pytest.mark.parametrize("keep", [(1, 0), (0, 0), (-1, 0), (0, 4)])
def test_impossible_cuts_are_refused(keep):
    with pytest.raises(ValueError, match="a: keep"):
        Cut("a", 4, keep)


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(ValueError, match=r"no plan.json; expected a folder that PrunePlan.save wrote"):
        PrunePlan.load(tmp_path)


def test_a_plan_of_another_format(tmp_path):
    PLAN.save(tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(data | {"format": 0}))
    with pytest.raises(ValueError, match="format 0; this version of cfsp reads 2"):
        PrunePlan.load(tmp_path)
