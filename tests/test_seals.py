"""Seals: what is kept but not as it was written, or is of something else, counts as absent."""

import json

import pytest
import torch

from cfsp.checkpoints.load import load
from cfsp.model.find_sites import find_sites
from cfsp.plans.kept import keep_plan, kept_plan
from cfsp.plans.plan import Cut, PrunePlan
from cfsp.plans.subject import Subject
from cfsp.records.record import Record
from cfsp.statistics.cached import collect_once
from cfsp.storage.cache import Cache, seal_of
from cfsp.storage.seals import seal, unseal
from cfsp.storage.tensors import read_tensors

IDS = torch.arange(3, 19).view(2, 8)
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]


def collected(cache, model, sites, batches, needs):
    return collect_once(Subject(model, sites, cache), sites, batches, needs)


def flip(path, place=-3):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_a_digit(path):
    text = path.read_text()
    place = next(place for place in range(len(text) // 2, len(text)) if text[place].isdigit())
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


DAMAGES = {
    "a flipped bit": flip,
    "a bit in the middle": lambda path: flip(path, len(path.read_bytes()) // 2),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "an empty object": lambda path: path.write_text("{}"),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "lost": lambda path: path.unlink(),
}


@pytest.fixture(params=DAMAGES)
def damage(request):
    return DAMAGES[request.param]


@pytest.mark.parametrize("which", ["whole.json", "one.bin", "inner/two.bin"])
def test_what_was_altered_or_lost_is_refused(which, damage, tmp_path):
    (tmp_path / "inner").mkdir()
    files = [tmp_path / "one.bin", tmp_path / "inner" / "two.bin"]
    for file in files:
        file.write_bytes(bytes(range(256)))
    seal(tmp_path / "whole.json", "this", files, ended=True, curve=[0.25])
    assert unseal(tmp_path / "whole.json", "this") == {"ended": True, "curve": [0.25]}
    with pytest.raises(ValueError, match="belongs to 'this', not to 'that'"):
        unseal(tmp_path / "whole.json", "that")
    damage(tmp_path / which)
    with pytest.raises(ValueError, match=which):
        unseal(tmp_path / "whole.json", "this")


def test_no_digit_of_a_seal_can_be_changed(tmp_path):
    (tmp_path / "one.bin").write_bytes(b"1")
    seal(tmp_path / "whole.json", "this", [tmp_path / "one.bin"], loss=0.25)
    (tmp_path / "whole.json").write_text((tmp_path / "whole.json").read_text().replace("0.25", "0.24"))
    with pytest.raises(ValueError, match="no seal"):
        unseal(tmp_path / "whole.json", "this")


@pytest.fixture
def entries(tiny_checkpoint, tmp_path):
    """Statistics in a cache; how to ask for them; the entry of one."""
    model = load(tiny_checkpoint)[0]
    sites, cache = find_sites(model, ["mlp"]), Cache(tmp_path)

    def ask():
        return collected(cache, model, sites, BATCHES, {"block_angular", "input_mean"})

    return ask, ask(), {entry.path.stem: entry.path for entry in cache.entries()}


def same(one, other):
    for site, stat in one.items():
        for name, value in stat.items():
            assert torch.equal(value, other[site][name])
    return True


def test_a_damaged_statistic_is_named_and_made_again(entries, damage, capsys):
    ask, before, paths = entries
    damage(paths["block_angular"])
    there = paths["block_angular"].exists()
    assert same(ask(), before)
    assert (str(paths["block_angular"]) in capsys.readouterr().err) == there
    assert same(ask(), before)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("whole", [True, False])
def test_another_entry_under_its_name_is_not_taken(entries, capsys, whole):
    ask, before, paths = entries
    paths["block_angular"].write_bytes(paths["input_mean"].read_bytes())
    if whole:
        seal_of(paths["block_angular"]).write_bytes(seal_of(paths["input_mean"]).read_bytes())
    assert same(ask(), before)
    assert "block_angular.safetensors is made again" in capsys.readouterr().err
    assert same(read_tensors(paths["block_angular"]) and ask(), before)


@pytest.mark.slow
def test_an_altered_figure_is_measured_again(cfsp, tmp_path):
    _, out, _ = cfsp()
    record = out.splitlines()[-1]
    expected = Record.load(record).metrics
    for alter in (change_a_digit, DAMAGES["an empty object"]):
        for path in (tmp_path / "results" / "cache" / "metrics").glob("*.json"):
            alter(path)
        (tmp_path / record).unlink()
        code, _, err = cfsp()
        assert code == 0
        assert len([line for line in err if "is made again" in line]) == 2
        assert Record.load(record).metrics == expected


@pytest.mark.parametrize("which", ["plan.json", "plan.safetensors", "made_from.json"])
def test_a_kept_plan_that_was_altered_is_made_anew(which, damage, tmp_path, capsys):
    folder = tmp_path / "run"
    keep_plan(folder, PrunePlan((Cut("0.mlp", 4, (0, 2), fill=torch.arange(4.0)),)), "here")
    assert torch.equal(kept_plan(folder, "here").edits[0].fill, torch.arange(4.0))
    damage(folder / which)
    capsys.readouterr()
    assert kept_plan(folder, "here") is None
    assert which in capsys.readouterr().err
    assert not folder.exists()


def test_a_digit_of_a_record_cannot_be_changed_unseen(cfsp, tmp_path):
    _, out, _ = cfsp()
    path = tmp_path / out.splitlines()[-1]
    before = Record.load(path)
    data = json.loads(path.read_text())
    data["metrics"]["pruned"]["perplexity/files:text.txt"]["value"] += 0.5
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="it was altered after it was written"):
        Record.load(path)
    code, _, (line,) = cfsp()
    assert code == 0
    assert f"{out.splitlines()[-1]}" in line
    assert line.endswith(f"it is kept as {path.name}.broken and made anew")
    assert Record.load(path).metrics == before.metrics


def test_a_record_may_be_laid_out_anew_and_older_ones_have_no_checksum(cfsp, tmp_path):
    _, out, _ = cfsp("evaluation=[]")
    path = tmp_path / out.splitlines()[-1]
    before = Record.load(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data, sort_keys=True))
    assert Record.load(path) == before
    del data["sha256"]
    path.write_text(json.dumps(data))
    assert Record.load(path) == before
