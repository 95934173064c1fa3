"""The cache: what jobs share is made once, and no fault of it costs more than the making."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from families import make

from cfsp.checkpoints.load import load
from cfsp.cli.cache import main
from cfsp.model.find_sites import find_sites
from cfsp.plans.subject import Subject
from cfsp.records.record import Metric, write_metrics
from cfsp.statistics import cached
from cfsp.statistics.cached import SHARED, collect_once
from cfsp.statistics.collect import collect
from cfsp.storage.about import About
from cfsp.storage.cache import OFF, Cache, seal_of
from cfsp.storage.fingerprints import fingerprint, fingerprint_batches
from cfsp.storage.locks import holding

IDS = torch.arange(3, 19).view(2, 8)
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]


def collected(cache, model, sites, batches, needs):
    return collect_once(Subject(model, sites, cache), sites, batches, needs)


@pytest.fixture
def passes(monkeypatch):
    """What every pass over the batches was asked for."""
    asked = []
    original = cached.collect

    def counted(model, sites, batches, needs, *rest, **options):
        asked.append(set(needs))
        return original(model, sites, batches, needs, *rest, **options)

    monkeypatch.setattr(cached, "collect", counted)
    return asked


@pytest.fixture
def tiny(tiny_checkpoint):
    return load(tiny_checkpoint)[0]


@pytest.fixture
def sites(tiny):
    return find_sites(tiny, ["mlp", "attention"])


def same(one, other):
    assert one.keys() == other.keys()
    for site in one:
        assert one[site].keys() == other[site].keys()
        for name in one[site]:
            torch.testing.assert_close(one[site][name], other[site][name], rtol=0, atol=0)


def test_a_pass_is_made_for_what_is_missing_alone(tiny, sites, tmp_path, passes):
    cache = Cache(tmp_path)
    first = collected(cache, tiny, sites, BATCHES, {"input_mean", "input_var"})
    both = collected(cache, tiny, sites, BATCHES, {"input_var", "block_angular"})
    again = collected(cache, tiny, sites, iter(BATCHES), {"input_mean", "input_var", "block_mse"})
    assert passes == [{*SHARED}, {"block_mse"}]
    same(again, collect(tiny, sites, BATCHES, {"input_mean", "input_var", "block_mse"}))
    assert torch.equal(first[sites[0].name]["input_var"], both[sites[0].name]["input_var"])


def test_what_the_numbers_depend_on_names_the_entry(tiny, sites, tmp_path, passes):
    cache = Cache(tmp_path)
    shorter = [{name: tensor[:, :7] for name, tensor in BATCHES[0].items()}]
    masked = [BATCHES[0] | {"attention_mask": torch.tensor([[1] * 8, [1] * 4 + [0] * 4])}]
    for batches in (BATCHES, shorter, masked):
        collected(cache, tiny, sites, batches, {"input_mean"})
    collected(cache, tiny, sites[:1], BATCHES, {"input_mean"})
    with torch.no_grad():
        tiny.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    collected(cache, tiny, sites, BATCHES, {"input_mean"})
    tiny.bfloat16()
    collected(cache, tiny, sites, BATCHES, {"input_mean"})
    tiny.float()
    tiny.config.rms_norm_eps *= 2
    collected(cache, tiny, sites, BATCHES, {"input_mean"})
    assert len(passes) == 7
    assert fingerprint_batches(BATCHES) != fingerprint_batches([BATCHES[0], BATCHES[0]])


def test_another_version_of_the_code_is_not_read(tiny, sites, tmp_path, passes, monkeypatch):
    collected(Cache(tmp_path), tiny, sites, BATCHES, {"input_mean"})
    monkeypatch.setattr(cached, "code_of", lambda *parts: "older")
    collected(Cache(tmp_path), tiny, sites, BATCHES, {"input_mean"})
    assert len(passes) == 2


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_entry_is_named_and_made_again(tiny, sites, tmp_path, passes, capsys, damage):
    cache = Cache(tmp_path)
    expected = collected(cache, tiny, sites, BATCHES, {"input_mean"})
    (entry,) = (entry for entry in cache.entries() if entry.path.stem == "input_mean")
    entry.path.write_bytes(entry.path.read_bytes()[:-5] if damage is None else damage)
    same(collected(cache, tiny, sites, BATCHES, {"input_mean"}), expected)
    assert entry.path.name in capsys.readouterr().err
    assert len(passes) == 2
    same(collected(cache, tiny, sites, BATCHES, {"input_mean"}), expected)
    assert len(passes) == 2


def test_off_keeps_nothing(tiny, sites, tmp_path, passes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        collected(OFF, tiny, sites, BATCHES, {"input_mean"})
    assert len(passes) == 2
    assert not [*tmp_path.iterdir()]
    assert Cache.at("off") == Cache.at(False) == OFF
    with pytest.raises(ValueError, match="expected a folder or off"):
        Cache.at(3)


def test_a_full_disk_costs_the_entry_alone(tiny, sites, tmp_path, monkeypatch, capsys):
    def full(tensors, path):
        path.write_bytes(b"as much as fits")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cached, "write_tensors", full)
    cache = Cache(tmp_path)
    stats = collected(cache, tiny, sites, BATCHES, {"input_mean"})
    same(stats, collect(tiny, sites, BATCHES, {"input_mean"}))
    assert "No space left" in capsys.readouterr().err
    assert not cache.entries()


def test_of_jobs_that_want_the_same_one_makes_it(tiny, sites, tmp_path, passes):
    jobs = [
        threading.Thread(target=collected, args=(Cache(tmp_path), tiny, sites, BATCHES, {"input_mean"}))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(passes) == 1


def test_a_killed_job_lets_go(tmp_path):
    held = (
        "import sys, time; from pathlib import Path; from cfsp.storage.locks import holding\n"
        "with holding(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "one.lock"
    job = subprocess.Popen([sys.executable, "-c", held, str(lock)], stdout=subprocess.PIPE)
    assert job.stdout.readline() == b"held\n"
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    with holding(lock, "never"):
        pass


def test_a_lock_that_cannot_be_created_is_not_waited_for():
    code = "from pathlib import Path; from cfsp.storage.locks import holding\n"
    code += "with holding(Path('/proc/one.lock'), 'x'): pass"
    told = {"capture_output": True, "text": True, "timeout": 60}
    job = subprocess.run([sys.executable, "-c", code], check=False, **told)
    assert job.stderr.splitlines()[-1].startswith("cfsp.storage.atomic.Unwritten: /proc/one.lock cannot be")


def test_a_clock_that_was_set_back_makes_no_negative_age(tiny, sites, tmp_path):
    cache = Cache(tmp_path)
    collected(cache, tiny, sites, BATCHES, {"input_mean"})
    for entry in cache.entries():
        os.utime(entry.path, (time.time() + 9e8, time.time() + 9e8))
    assert {entry.age for entry in cache.entries()} == {0}
    assert not cache.clear(older=1)
    assert len(cache.clear()) == len(SHARED)


def test_the_command_lists_and_clears(tiny, sites, tmp_path, capsys):
    about = About("m", "r", "auto", "t", samples=2, seqlen=8, seed=0)
    collected(Cache(tmp_path, about), tiny, sites, BATCHES, {"input_mean"})
    metrics = {"perplexity/t": Metric(5.5, None, 1, "lower", {})}
    Cache(tmp_path).put("metrics/a.json", partial(write_metrics, metrics=metrics))
    Cache(tmp_path).put("metrics/b.json", lambda part: part.write_text("half"))
    (tmp_path / "metrics" / "folder.json").mkdir()
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert err == f"cfsp-cache: {tmp_path}/metrics/b.json: no metrics: no JSON: {err.split('no JSON: ')[-1]}"
    for words in ("input_mean.safetensors  m@r (auto), 2 x 8 tokens of t, seed 0", "perplexity/t 5.5"):
        assert words in out
    assert "metrics/b.json  (altered or broken" in out
    assert "kept, 6 entries" in out
    main([str(tmp_path), "--clear", "--older", "7d"])
    assert "deleted, 0 entries" in capsys.readouterr().out
    main([str(tmp_path), "--clear", "--kind", "statistics"])
    assert [entry.kind for entry in Cache(tmp_path).entries()] == ["metrics"] * 2
    main([str(tmp_path), "--clear"])
    assert not [*tmp_path.iterdir()]


def test_the_command_names_entries_that_do_not_fit_their_seals(tmp_path, capsys):
    cache = Cache(tmp_path)
    for name in "abc":
        cache.put(
            f"metrics/{name}.json", partial(write_metrics, metrics={"p": Metric(5.5, None, 1, "lower", {})})
        )
    whole, altered, unsealed = (tmp_path / "metrics" / f"{name}.json" for name in "abc")
    altered.write_text(altered.read_text().replace("5.5", "4.5"))
    seal_of(unsealed).unlink()
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert "a.json  p 5.5" in out
    assert out.count("(altered or broken; a job that wants it makes it again)") == 2
    assert f"{altered} was altered after it was written" in err
    assert f"{seal_of(unsealed)} cannot be read" in err
    assert str(whole) not in err


def test_clearing_takes_seals_without_an_entry(tmp_path, capsys):
    cache = Cache(tmp_path)
    for name in "ab":
        cache.put(f"statistics/m/{name}.json", lambda part: part.write_text("{}"))
    kept, lost = (tmp_path / "statistics" / "m" / f"{name}.json" for name in "ab")
    lost.unlink()
    main([str(tmp_path), "--clear", "--older", "7d"])
    assert {*kept.parent.iterdir()} == {kept, seal_of(kept)}
    kept.unlink()
    main([str(tmp_path), "--clear"])
    assert not [*tmp_path.iterdir()]


def test_clearing_spares_what_a_running_job_writes(tmp_path):
    cache = Cache(tmp_path)
    running, killed = (tmp_path / "metrics" / f".{name}.json.0123.part" for name in "ab")
    running.parent.mkdir()
    for part, days in ((running, 0.9), (killed, 1.1)):
        part.write_text("half")
        os.utime(part, (time.time() - days * 86400,) * 2)
    cache.clear(older=2 * 86400)
    assert killed.exists()
    cache.clear()
    assert [*running.parent.iterdir()] == [running]


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--older", "7"], [".", "--kind", "x"]])
def test_the_command_says_what_it_expects(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "expected" in capsys.readouterr().err or "--kind" in arguments


def test_clearing(tiny, sites, tmp_path):
    cache = Cache(tmp_path)
    collected(cache, tiny, sites, BATCHES, {"input_mean", "input_var"})
    other = tmp_path / "mine.txt"
    other.write_text("not an entry")
    assert [entry.kind for entry in cache.entries()] == ["statistics"] * len(SHARED)
    assert not cache.clear(older=3600)
    assert len(cache.clear()) == len(SHARED)
    assert [*tmp_path.iterdir()] == [other]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_s_name_sees_every_element(dtype):
    model = make("llama").to(dtype)
    name = fingerprint(model)
    dice = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        place = tuple(int(torch.randint(size, (), generator=dice)) for size in weight.shape)
        before = weight.detach()[place].clone()
        with torch.no_grad():
            weight[place] = before + 1
            assert fingerprint(model) != name
            weight[place] = before
    assert fingerprint(model) == name
    with torch.no_grad():  # two neurons change places
        weight = model.model.layers[0].mlp.down_proj.weight
        weight[:, [3, 4]] = weight[:, [4, 3]]
    assert fingerprint(model) != name
