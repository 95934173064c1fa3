"""Sweeps that run side by side: the same numbers as one after the other, and no job's death is another's."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from pipes import open_when_read

import psutil
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from probe import Probe

from cfsp.cli.main import main
from cfsp.running.build import CONF
from hydra_plugins.cfsp_launchers.joblib import JoblibLauncher, threads_per_worker, worker_environment

PRESETS = sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml"))
SMALL_JOBS = [f"hydra.launcher.{option}" for option in ("cpus_per_task=1", "mem_gb=1", "timeout_min=5")]
SLURM = os.environ.get("CFSP_TEST_SLURM", "no Slurm cluster for tests; make test-slurm starts one")


@dataclass(frozen=True)
class Sweep:
    """`cfsp -m` in a process of its own, with a tiny model."""

    folder: Path
    overrides: list[str]
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, launcher, *others):
        command = [sys.executable, "-m", "cfsp", "-m", *self.overrides, f"hydra/launcher={launcher}", *others]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A session of its own has a process group of its own, for Ctrl-C and for clearing up. Tests that were
        # started in the background ignore Ctrl-C, and so would what they start.
        own = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=environment, **own, **pipes))
        return self.started[-1]

    def run(self, launcher, *others):
        process = self.start(launcher, *others)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def metrics(self):
        """Of every record, by id."""
        records = (self.folder / "results" / "records").glob("*.json")
        return {path.stem: json.loads(path.read_text())["metrics"] for path in records}


@pytest.fixture
def sweep(tmp_path, tiny_overrides):
    sweep = Sweep(tmp_path, tiny_overrides())
    yield sweep
    for process in sweep.started:
        with suppress(ProcessLookupError):  # all of them ended
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What the sweep of these tests measures when its jobs run one after the other."""
    found = {}

    def measure(overrides):
        if not found:
            alone = Sweep(tmp_path_factory.mktemp("serial"), overrides)
            assert alone.run("basic", "sparsity=0.2,0.5")[0] == 0
            found.update(alone.metrics())
        return found

    return measure


@pytest.fixture
def ray_head(tmp_path, monkeypatch):
    """A Ray cluster that was started beforehand, as `address=auto` finds it."""
    # A token of its own: with an address, Ray asks for one only where it is told to.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    temporary = Path("/tmp") / f"cfsp-ray-{os.getpid()}"  # a socket's path must be short
    ray = shutil.which("ray", path=str(Path(sys.executable).parent))
    command = [ray, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    command += [f"--temp-dir={temporary}", "--disable-usage-stats"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        # Which of several clusters of this machine is meant by auto, were others running.
        monkeypatch.setenv("RAY_ADDRESS", address(head, tmp_path / "ray.log"))
        yield head
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(timeout=60)
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def test_gpus_go_round_and_cores_are_divided(monkeypatch):
    found = [worker_environment(worker, 3, ["0", "5"]) for worker in range(4)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["0", "5", "0", "5"]
    assert {environment["OMP_NUM_THREADS"] for environment in found} == {"3"}
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 3, [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_worker(workers, cores=8) for workers in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_per_worker(3, cores=8) == 5


def test_a_worker_keeps_its_gpu_and_outlives_a_killed_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    jobs = [Probe(number, dies=number == 1) for number in range(8)]
    found = {job.number: done for job, done in JoblibLauncher(n_jobs=4, threads=2).run(jobs)}
    assert sorted(found) == [*range(8)]
    assert "was killed" in found.pop(1)
    assert [found[number]["CUDA_VISIBLE_DEVICES"] for number in (0, 2, 3)] == ["0", "2", "0"]
    assert {done["CUDA_VISIBLE_DEVICES"] for done in found.values()} <= {"0", "1", "2"}
    assert {done["OMP_NUM_THREADS"] for done in found.values()} == {"2"}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_are_what_hydra_uses(preset, monkeypatch, capsys):
    options = OmegaConf.load(CONF / "hydra" / "launcher" / f"{preset}.yaml")
    instantiate(OmegaConf.merge(options, {"folder": "x"} if "folder" in options else {}))
    monkeypatch.setattr(sys, "argv", ["cfsp", f"hydra/launcher={preset}", "--cfg", "hydra"])
    main()
    out, err = capsys.readouterr()
    assert f"_target_: {options._target_}\n" in out
    assert err == ""


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("launcher", "option", "message"),
    [
        (
            "joblib",
            "hydra.launcher.n_jobs=0",
            "hydra.launcher.n_jobs=0: expected a whole number",
        ),
        ("joblib", "hydra.launcher.threads=x", "hydra.launcher.threads='x': expected a whole"),
        ("submitit_local", "hydra.launcher.timeout_min=x", "hydra/launcher=submitit_local: "),
        ("submitit_local", "+hydra.launcher.color=red", "hydra/launcher=submitit_local: "),
    ],
)
def test_a_launcher_that_cannot_start_is_one_line(launcher, option, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cfsp", "-m", f"hydra/launcher={launcher}", option, "seed=0,1"])
    with pytest.raises(SystemExit) as error:
        main()
    err = capsys.readouterr().err
    assert error.value.code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith(f"cfsp: error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_the_numbers_are_those_of_a_serial_sweep(sweep, serial, launcher):
    code, _, err = sweep.run(launcher, "sparsity=0.2,0.5")
    assert (code, err) == (0, "")
    assert sweep.metrics() == serial(sweep.overrides)


@pytest.mark.slow
def test_ray_joins_a_running_head(sweep, serial, ray_head):
    code, _, err = sweep.run("ray", "hydra.launcher.address=auto", "sparsity=0.2,0.5")
    assert (code, err) == (0, "")
    assert sweep.metrics() == serial(sweep.overrides)
    assert ray_head.poll() is None


@pytest.mark.slurm
@pytest.mark.skipif(SLURM != "1", reason=SLURM)
def test_slurm_runs_a_sweep(sweep, serial):
    code, _, err = sweep.run("submitit_slurm", *SMALL_JOBS, "sparsity=0.2,0.5")
    assert (code, err) == (0, "")
    assert sweep.metrics() == serial(sweep.overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", []),
        ("submitit_local", []),
        ("ray", []),
        pytest.param(
            "submitit_slurm",
            SMALL_JOBS,
            marks=[pytest.mark.slurm, pytest.mark.skipif(SLURM != "1", reason=SLURM)],
        ),
    ],
)
def test_a_killed_job_is_named_and_the_sweep_goes_on(sweep, text_file, launcher, options):
    pipe = sweep.folder / "pipe.txt"
    os.mkfifo(pipe)  # reading it blocks, so the kill comes in the middle of a job
    shutil.copy(text_file, sweep.folder / "text.txt")
    arguments = [*options, "calibration.text.paths=pipe.txt,text.txt"]
    process = sweep.start(launcher, *arguments)
    writer = open_when_read(pipe, process, seconds=300)
    os.kill(reader(pipe), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    os.close(writer)
    assert process.returncode == 1
    assert err.startswith("cfsp: error: calibration.text.paths=pipe.txt: ")
    assert "2 jobs: 1 made, 1 failed" in out
    (failure,) = (sweep.folder / "results" / "failures").glob("*.json")
    assert json.loads(failure.read_text())["config"]["calibration"]["text"]["paths"] == "pipe.txt"
    (finished,) = sweep.metrics()
    pipe.unlink()
    shutil.copy(text_file, pipe)
    stamp = (sweep.folder / "results" / "records" / f"{finished}.json").stat().st_mtime_ns
    assert sweep.run(launcher, *arguments)[0] == 0
    assert len(sweep.metrics()) == 2
    assert not failure.exists()
    assert (sweep.folder / "results" / "records" / f"{finished}.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_ctrl_c_ends_the_workers_too(sweep, launcher):
    pipe = sweep.folder / "pipe.txt"
    os.mkfifo(pipe)
    process = sweep.start(launcher, "calibration.text.paths=pipe.txt", "seed=0,1")
    writer = open_when_read(pipe, process, seconds=300)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(writer)
    assert process.returncode == 130
    assert err.splitlines() == [
        "cfsp: 0 of 2 jobs ended; the same command goes on with the others",
        "cfsp: interrupted; what was finished before stays",
    ]
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert sweep.metrics() == {}


def address(head: subprocess.Popen, log: Path) -> str:
    """Where a Ray head listens, as soon as it says so."""
    for _ in range(1200):
        assert head.poll() is None
        if found := re.search(r"--address='(\S+)'", log.read_text()):
            return found[1]
        time.sleep(0.1)
    return pytest.fail("the head never said its address")


def reader(pipe: Path) -> int:
    """The process that reads a FIFO."""
    for _ in range(100):
        for folder in Path("/proc").glob("[0-9]*/fd"):
            if int(folder.parent.name) != os.getpid() and str(pipe) in targets(folder):
                return int(folder.parent.name)
        time.sleep(0.1)
    return pytest.fail("no process reads the pipe")


def targets(folder: Path) -> list[str]:
    """Where the links in a folder lead; what goes meanwhile is passed over."""
    found = []
    with suppress(OSError):
        for link in folder.iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return found
