"""The command line as a user meets it: help, one-line errors, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from pipes import open_when_read

import pytest
from safetensors.torch import load_file, save_file

from cfsp import bars
from cfsp.running.sweeps import Outcome, Sweep

ROOT = Path(__file__).parent.parent
STAGES = ["load", "dense evaluation", "plan", "surgery", "evaluation"]
"""Without a recovery."""


def test_help_teaches_and_needs_no_torch():
    code = """
import sys
sys.argv = ["cfsp", "--help"]
from cfsp.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in (
        "Examples",
        "criterion: cfsp, chance, depth",
        "sparsity: 0.2",
        "model.path=FOLDER_OR_HUB_ID",
    ):
        assert word in done.stdout


def test_prints_stages_table_and_path_without_a_terminal(cfsp, tmp_path):
    code, out, err = cfsp()
    assert (code, err) == (0, [])
    *said, about, path = out.splitlines()
    assert about == "The record of this run, with its config and all figures:"
    assert [line.split(": ")[2] for line in said if line.startswith("cfsp: ")] == STAGES
    for word in ("dense", "pruned", "asked 20.0%", "perplexity/files:text.txt", "What was kept"):
        assert any(word in line for line in said)
    assert (tmp_path / path).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


def test_silence_is_broken_with_what_is_under_way(capsys, monkeypatch):
    monkeypatch.setattr(bars, "SILENCE", 0.0)
    with bars.lines():
        bars.begin("plan")
        for _ in bars.bar(range(2), "calibration", "batch"):
            time.sleep(0.7)
    out = capsys.readouterr().out
    assert "plan: calibration, batch 0 of 2\n" in out
    assert re.search(r"plan: calibration, batch 1 of 2, about \d s left\n", out)


def test_shows_tables_at_a_terminal(cfsp, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = cfsp("sparsity=0.5")
    for word in ("dense", "pruned", "asked 50.0%", "perplexity/files:text.txt", "What was kept", "█"):
        assert word in out


@pytest.mark.slow
def test_a_sweep_says_where_it_is_and_ends_in_a_table(cfsp, tmp_path):
    code, out, _ = cfsp("-m", "criterion=chance,cfsp", "sparsity=0.2,0.5")
    assert code == 0
    assert "[3/4] criterion=cfsp sparsity=0.2 (2 ended, about " in out
    assert re.search(r"\[4/4\] criterion=cfsp sparsity=0.5: perplexity/files:text.txt \S+ -> \S+, ", out)
    assert "4 jobs: 4 made" in out
    assert out.splitlines()[-1].startswith("cfsp-tables results/records compares them")
    assert len([*(tmp_path / "results" / "records").iterdir()]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
    code, out, _ = cfsp("-m", "criterion=chance,cfsp", "sparsity=0.2,0.3")
    assert "4 jobs: 2 made, 2 read" in out


def test_a_failing_job_does_not_stop_the_sweep(cfsp, tmp_path):
    code, out, err = cfsp("-m", "sparsity=0.2,1.0,0.3")
    assert code == 1
    assert err == ["cfsp: error: sparsity=1.0: expected a share to remove, in [0, 1)"]
    assert "3 jobs: 2 made, 1 failed" in out
    assert "sparsity=1.0: sparsity=1.0: expected a share to remove" in out
    assert len([*(tmp_path / "results" / "failures").iterdir()]) == 1


def test_the_time_left_leaves_out_what_the_first_job_did_for_all(tmp_path, monkeypatch):
    clock = iter([0.0, 100.0, 110.0, 130.0])  # the start, then the end of each job
    monkeypatch.setattr("cfsp.running.sweeps.time.monotonic", lambda: next(clock))
    sweep, told = Sweep(tmp_path, 5), []
    for number in range(3):
        sweep.end(number, "x", Outcome("made", removed=0.2))
        told.append(sweep.left())
    assert told == [
        " (1 ended, 6 min 40 s left or less)",
        " (2 ended, about 30 s left)",
        " (3 ended, about 30 s left)",
    ]


def test_what_needs_no_torch_is_refused_without_it():
    code = """
import sys
from cfsp.cli.typos import check
for wrong in ("sparsity=30", "model.path=./nowhere"):
    try:
        check([wrong])
    except ValueError as error:
        print(error)
check(["model.path=owner/nowhere"])
check(["model.path=./nowhere", "--cfg", "job"])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    share, path, hub = done.stdout.splitlines()
    assert share == "sparsity=30: expected a share to remove, in [0, 1)"
    assert path.startswith("model path './nowhere' cannot be loaded: expected a folder")
    assert hub == "cfsp: owner/nowhere: there is no such folder here, so it is taken from the hub"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("damage", ["truncated", "missing", "misfit"])
def test_a_damaged_checkpoint_is_refused(cfsp, tiny_checkpoint, tmp_path, damage):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = broken / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        name = "model.layers.1.mlp.down_proj.weight"
        kept = tensors.pop(name)
        if damage == "misfit":
            tensors[name] = kept[:, :5].contiguous()
        save_file(tensors, weights, metadata={"format": "pt"})
    code, _, err = cfsp(f"model.path={broken}")
    assert code == 1
    assert err[-1].startswith("cfsp: error: model path")


def test_cfg_job_shows_the_config(cfsp):
    code, out, _ = cfsp("--cfg", "job")
    assert code == 0
    assert "_target_: cfsp.criteria.cfsp.CFSP" in out


BAD = [
    (["sparsity=1.0"], "sparsity=1.0: expected a share to remove, in [0, 1)"),
    (["sparsity=-0.1"], "expected a share to remove, in [0, 1)"),
    (
        ["sites=[experts]"],
        "no 'experts' whose units can go; expected one or more of ['mlp', 'attention', ",
    ),
    (["allocator.round_to=64", "sparsity=0.5"], "would leave a width of zero units"),
    (["calibration.seqlen=65"], "calibration seqlen=65: the model has 64 positions; expected at most 64"),
    (["model.path=no/such/model"], "model path 'no/such/model' cannot be loaded"),
    (["model.path=."], "model path '.' cannot be loaded"),
    (["device=cuda:7"], "device='cuda:7': torch"),
    (["model.dtype=int8"], "dtype='int8': expected one of auto, float32, bfloat16, float16"),
    (["calibration.text.paths=nowhere.txt"], "no file matches 'nowhere.txt'"),
    (["criterion.variant=x"], "variant='x': expected one of paper, released"),
    (["calibration.text.paths=???"], "calibration.text.paths"),
    (["allocator.round_to=many"], "allocator.round_to='many': expected a whole number"),
    (["calibration.samples=2.5"], "calibration.samples=2.5: expected a whole number"),
    (["seed=x"], "seed='x': expected a whole number"),
    (["allocator.protect=3"], "protect=3: expected a list of block numbers"),
    (["+allocator.foo=1"], "allocator.foo=1: no such option; expected one of round_to, "),
    (["sites=5"], "sites=5: expected a list of one or more of mlp, attention, "),
    (["calibration.text.paths=5"], "calibration.text.paths=5: expected a list of texts or text"),
    (["results=null"], "results=None: expected a folder that can be written"),
    (["results=/proc/foo"], "results='/proc/foo': expected a folder that can be written"),
    (["overwrite=maybe"], "overwrite='maybe': expected true or false"),
    (["calibration.bos=maybe"], "bos='maybe': expected true or false"),
    (["model.path=null"], "model.path=None: expected a folder, a GGUF file or a hub id"),
    (["sparsity=0.2", "allocator.protect=[0,1]"], "every block is protected; expected some to cut"),
    (["model.attn_implementation=nonesuch"], "cannot be loaded"),
    (
        ["sparsity=0.9", "allocator=error_curves", "allocator.protect=[0]", "allocator.allow_empty=true"],
        "of the sites is more than they can lose; with round_to=1 and protect=[0] expected at most 0.5000",
    ),
    (
        ["compensation=least_squares", "compensation.ridge=auto", "calibration.samples=7"],
        "holds out every 8th calibration sample, and there are 7; expected 8 or more, or a number",
    ),
    (["compensation=scale", "compensation.ridge=auto"], "ridge='auto': expected a finite number"),
    (
        ["sites=[block]", "criterion=depth", "compensation=bridge", "compensation.ridge=0"],
        "compensation ridge=0: expected a number above 0",
    ),
]
"""Overrides, and what the error says."""


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_exit_code_one_and_no_record(cfsp, tmp_path, arguments, message):
    code, out, err = cfsp(*arguments)
    assert code == 1
    assert all(line.startswith("cfsp: ") for line in out.splitlines())
    (line,) = err
    assert line.startswith("cfsp: error: ")
    assert message in line
    assert not (tmp_path / "results" / "records").exists()


def test_an_activation_that_overflows_names_block_and_batch(cfsp, tiny_checkpoint, tmp_path):
    import torch

    from cfsp.checkpoints.load import load

    model, tokenizer = load(tiny_checkpoint)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 3e38  # finite, which its products are not
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    code, _, err = cfsp(f"model.path={tmp_path}/broken", "evaluation=[]")
    assert code == 1
    assert "at model.layers.1 at calibration batch 0" in err[-1]


def test_full_error_shows_the_traceback(cfsp, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = cfsp("sparsity=2")
    assert code == 1
    assert err[0].startswith("Traceback")
    assert any(line.startswith("ValueError: sparsity=2: expected a share") for line in err)


@pytest.mark.slow
def test_ctrl_c_leaves_no_file(tmp_path, tiny_checkpoint):
    text = tmp_path / "text.txt"
    os.mkfifo(text)  # reading it blocks, so the signal comes in the middle of the run
    command = [sys.executable, "-m", "cfsp", f"model.path={tiny_checkpoint}", "evaluation=[]"]
    command += ["calibration=text", f"calibration.text.paths={text}", "calibration.seqlen=16"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that were started in the background ignore the signal, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    writer = open_when_read(text, process)
    time.sleep(0.5)  # between opening and reading, a signal would wait for the read to end
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    os.close(writer)
    assert process.returncode == 130
    assert err == "cfsp: interrupted; what was finished before stays\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_wheel_runs_from_an_empty_folder(tmp_path):
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "cfsp", "calibration.samples=8", "evaluation=[]"],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "empty" / done.stdout.splitlines()[-1]).is_file()
