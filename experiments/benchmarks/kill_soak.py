"""Kill sweeps inside their file operations, then finish them; the results must not show the kills.

    python experiments/benchmarks/kill_soak.py --kills 200

A sweep of a tiny model is killed at its n-th file operation below its results folder (opening for writing,
flushing, renaming, making, deleting), with a random n; a file that is being written loses half. After a few
kills the sweep runs to its end. Then its records and the list of all files must equal those of an undisturbed
sweep, and at no time may a record be beside another run's model. Five ways of running are tested: plain,
`save=true`, `overwrite=true` over a finished sweep, `recovery=lora`, and joblib, where either a worker or
everything is killed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

HERE = Path(__file__).resolve().parent
IN_A_ROW = 4
"""Kills of one folder before the sweep runs to its end."""
TRAINING = [
    *("recovery=lora", "recovery/data=text", "recovery.data.window=16", "recovery.data.held_out=8"),
    *("recovery.training.max_steps=4", "recovery.training.evaluate_every=2", "recovery.training.warmup=0"),
    *("recovery.training.batch_size=4", "recovery.training.learning_rate=0.01"),
]
PRELOADED = [
    *("cfsp.running.run", "cfsp.training.lora", "cfsp.tables.compare", "rich.console"),
    *("cfsp.allocators.cfsp", "cfsp.evaluation.perplexity", "transformers.models.llama.modeling_llama"),
]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "hydra.launcher.threads=1"]


@dataclass(frozen=True)
class Scenario:
    """A way of running. share: fraction of all kills; over: whether it starts over a finished sweep."""

    arguments: list[str]
    share: float
    over: bool = False


SCENARIOS = {
    "plain": Scenario([], 0.25),
    "save": Scenario(["save=true"], 0.25),
    "overwrite": Scenario(["save=true", "overwrite=true"], 0.25, over=True),
    "lora": Scenario([*TRAINING, "save=true"], 0.15),
    "joblib": Scenario([*JOBLIB, "save=true"], 0.1),
}


class Fatal(Callback):
    """Ends its process inside a file operation. Hydra passes it to the processes of all jobs.

    at: number of that operation, counted from the first job of the process; 0 only counts, and writes the
    count to the file `counted` when a job ends. folder: operations below it count. group: whether all
    processes of the sweep end too.
    """

    state: dict[str, Any] | None = None
    """One per process, for all jobs: an audit hook cannot be removed."""

    def __init__(self, folder: str, at: int, group: bool, counted: str) -> None:
        self.given = {"folder": folder, "at": at, "group": group, "counted": counted}

    def on_job_start(self, config: Any, **others: Any) -> None:
        if Fatal.state is None:
            Fatal.state = self.given | {"count": 0}
            sys.addaudithook(heard)
            os.fsync = flushed(os.fsync)

    def on_job_end(self, config: Any, **others: Any) -> None:
        if not self.given["at"]:
            Path(self.given["counted"]).write_text(str(Fatal.state["count"]))


def heard(event: str, args: tuple[Any, ...]) -> None:
    """Handle an audit event of Python; only changes of files count."""
    if event == "open":
        path, _, flags = args
        if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            operation(os.fsdecode(path), event)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "shutil.rmtree"):
        path, folder = os.fsdecode(args[0]), args[-1]
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        operation(path, event)


def flushed(original: Any) -> Any:
    def fsync(descriptor: int) -> None:
        operation(os.readlink(f"/proc/self/fd/{descriptor}"), "fsync")
        original(descriptor)

    return fsync


def operation(path: str, event: str) -> None:
    """Count an operation, and end the process if it is number `at`."""
    state, path = Fatal.state, os.path.abspath(path)
    if not path.startswith(state["folder"]):
        return
    state["count"] += 1
    if state["count"] != state["at"]:
        return
    state["at"] = -1  # what follows are this hook's own operations
    if event == "fsync" and os.path.isfile(path):  # a folder is flushed too
        os.truncate(path, os.stat(path).st_size // 2)
    Path(state["counted"]).write_text(event)
    os.killpg(0, signal.SIGKILL) if state["group"] else os.kill(os.getpid(), signal.SIGKILL)


def sweep(folder: Path, arguments: list[str], at: int | None, group: bool) -> None:
    """Run `cfsp -m` in its own process group. at: the event to kill it at; None for none."""
    os.setpgid(0, 0)
    import torch

    from cfsp.cli.main import main

    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    (folder / "event").unlink(missing_ok=True)
    sys.argv = ["cfsp", "-m", *arguments]
    if at is not None:
        sys.argv += [
            "+hydra.callbacks.fatal._target_=kill_soak.Fatal",
            f"+hydra.callbacks.fatal.folder={folder}/results",
            f"+hydra.callbacks.fatal.at={at}",
            f"+hydra.callbacks.fatal.group={group}",
            f"+hydra.callbacks.fatal.counted={folder}/event",
        ]
    with open("log.txt", "a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())  # workers inherit them
        main()


class Soak:
    """Runs sweeps in processes that are forked from one that has imported everything."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.base = [*tiny(place), "criterion=wanda_sp", "sparsity=0.2,0.5"]
        self.forks = multiprocessing.get_context("forkserver")
        self.forks.set_forkserver_preload(PRELOADED)

    def run(self, folder: Path, scenario: Scenario, at: int | None = None, group: bool = True) -> int:
        arguments = [*self.base, *scenario.arguments]
        if "recovery=lora" in arguments:
            arguments.append(f"recovery.data.sources.text.text.paths={self.place}/text.txt")
        process = self.forks.Process(target=sweep, args=(folder, arguments, at, group))
        process.start()
        process.join()
        return process.exitcode

    def soak(self, name: str, kills: int, seed: int) -> Iterator[str]:
        """Kill this often, and yield a line per fault."""
        scenario, dice = SCENARIOS[name], random.Random(f"{seed} {name}")
        calm = self.place / name / "calm"
        calm.parent.mkdir()
        if self.run(calm, scenario, at=0) != 0:
            yield f"{name}: the undisturbed sweep failed, see {calm}/log.txt"
            return
        operations, expected = int((calm / "event").read_text()), outcome(calm)
        done, number, events, start = 0, 0, Counter(), time.monotonic()
        while done < kills:
            folder = calm.with_name(f"killed{number}")
            if scenario.over:
                shutil.copytree(calm, folder)
            for place in range(min(IN_A_ROW, kills - done)):
                at = dice.randint(1, operations // (2 if place else 1))  # less is left to do after a kill
                code = self.run(folder, scenario, at, group=name != "joblib" or dice.random() < 0.5)
                yield from (f"{folder}: {fault}" for fault in strangers(folder))
                if not (folder / "event").exists():
                    break  # it ended before the kill
                done, events = done + 1, events + Counter([(folder / "event").read_text()])
            else:
                code = self.run(folder, scenario)
            yield from (
                f"{folder}: {fault}" for fault in [*strangers(folder), *differences(folder, expected)]
            )
            if code != 0:
                yield f"{folder}: exit code {code} in the end, see log.txt there"
            number += 1
        kinds = ", ".join(f"{count} {event}" for event, count in sorted(events.items()))
        took = time.monotonic() - start
        print(f"{name}: {done} kills ({kinds}) over {operations} operations, {number} sweeps, {took:.0f} s")


def strangers(folder: Path) -> list[str]:
    """Return models whose own record differs from that in the folder of records."""
    found = []
    for model in (folder / "results" / "models").glob("[!.]*/record.json"):
        record = folder / "results" / "records" / f"{model.parent.name}.json"
        if record.exists() and record.read_text() != model.read_text():
            found.append(f"{record} stands beside another model")
    return found


def differences(folder: Path, expected: dict[str, Any]) -> Iterator[str]:
    """Return the differences between a sweep and the undisturbed one."""
    for what, found in outcome(folder).items():
        if found != expected[what]:
            yield f"{what}: {found}\n  undisturbed: {expected[what]}"


def outcome(folder: Path) -> dict[str, Any]:
    """Return a sweep's table, its records without times and places, and the list of its files."""
    from cfsp.records.record import records
    from cfsp.tables.compare import compare

    results = folder / "results"
    found = [*records(results / "records")]
    table = compare(found, "perplexity/files:text.txt", lambda record: record.config["criterion"]["_target_"])
    files = (path.relative_to(results) for path in results.rglob("*") if path.is_file())
    return {
        "table": table.to_csv(),
        "records": {one.id: (one.metrics, one.widths, one.notes, curves(one.training)) for one in found},
        "files": sorted(str(path) for path in files if path.parts[0] != "sweeps"),
    }


def curves(training: dict[str, Any] | None) -> Any:
    return training and (training["steps"], training["best_step"], training["held_out_curve"])


def tiny(place: Path) -> list[str]:
    """Make a tiny model and a text, and return overrides that use them."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from cfsp.checkpoints.load import REFERENCE

    words = "the cat sat on a mat while two dogs ran over many green hills and far away".split()
    (place / "text.txt").write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(1500)))
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return [
        f"model.path={place}/model",
        *("calibration=text", f"calibration.text.paths={place}/text.txt"),
        *("calibration.samples=6", "calibration.seqlen=16"),
        *("evaluation=perplexity_text", f"evaluation.perplexity_text.text.paths={place}/text.txt"),
        "evaluation.perplexity_text.window=32",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the test; exit with code 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="some of the ways of running")
    options = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    chosen = options.only or [*SCENARIOS]
    shares = sum(SCENARIOS[name].share for name in chosen)
    faults = []
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        soak = Soak(Path(place).resolve())
        for name in chosen:
            kills = math.ceil(options.kills * SCENARIOS[name].share / shares)
            for fault in soak.soak(name, kills, options.seed):
                print(fault, file=sys.stderr, flush=True)
                faults.append(fault)
    print(json.dumps({"kills": options.kills, "faults": len(faults)}))
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    sys.modules["kill_soak"] = sys.modules["__main__"]
    sys.path.insert(0, str(HERE))
    main()
