"""What pages show, read off them: code blocks, and commands made small enough to run."""

import re
import shlex
import sys

from hydra import compose, initialize_config_dir

from cfsp.running.build import CONF
from cfsp.running.parts import Parts

FAR = (
    "meta-llama/",
    "google-bert/",
    "submitit_slurm",
    "launcher=ray",
    "tasks=[boolq",
    "+experiment=paper/",
)
"""What names the hub, a cluster, or data that are not here."""

FLAGS = ("-m", "--multirun", "--help", "--cfg", "job")

TINY = {
    "generation": ["chat=false", "shots=0", "new_tokens=4", "limit=3"],  # the tiny model has no chat template
    "perplexity": ["window=32", "windows=4"],
    "latency": ["batch_sizes=[1]", "prompts=[8]", "new_tokens=2", "repeats=1"],
    "size": ["context=16"],
    "samples": ["new_tokens=2"],
}
"""Of evaluations, what makes them quick."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The `cfsp` lines of blocks without a language or of shell, without comments, continued lines joined."""
    text = "\n".join(text for language, text in blocks(page) if language in ("", "sh"))
    lines = text.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line) for line in lines if line.startswith("cfsp")]


def of(name: str, lines: list[str]) -> list[str]:
    return [line for line in lines if shlex.split(line)[0] == name]


def is_far(line: str) -> bool:
    return any(word in line for word in FAR)


def tiny(line: str) -> list[str]:
    """More overrides that make a run small."""
    # The prompts of instructions are longer than the tiny model's context.
    if "task=" in line:
        window = ["task.window=32", *(["task.stride=8"] if "squad" in line else [])]
        trained = ["recovery.training.max_steps=2", "recovery.data.held_out=8", "recovery.data.limit=24"]
        replaced = ["save=my/more"] if "save=my/tuned" in line else []
        return [*window, "calibration.samples=6", *(trained if "recovery=" in line else []), *replaced]
    # Targets count the embedded model's units; prompts are longer than the tiny model's context.
    own = any(word in line for word in ("model.path", "instructions", "self_answers", "target.", ",self"))
    more = [] if own else ["model.path=my/model"]
    length = 130 if "self_answers" in line else 80 if ",self" in line else 16
    more += ["calibration.samples=6", f"calibration.seqlen={length}"]
    alone = "calibration=self" in line and "self_answers" not in line
    more += ["calibration.prompt_tokens=8"] if alone else []
    chosen = re.search(r"evaluation=\[?([a-z_,]*)", line)
    for name in chosen.group(1).split(",") if chosen else ["perplexity"]:
        more += [f"evaluation.{name}.{option}" for option in TINY.get(name.removesuffix("_text"), [])]
    if "recovery=" in line and "reconstruction" not in line:
        more += ["recovery.training.max_steps=2"]
    if "recovery=reconstruction" in line:
        more += ["recovery.steps=2"]
    if "recovery=" in line:
        window = 128 if "instructions" in line else 32
        more += [f"recovery.data.window={window}", "recovery.data.held_out=8", "recovery.data.limit=24"]
    if "+experiment=cfsp" in line or "round_to=" in line:
        more += ["allocator.round_to=8"]
    return more


def tiny_arguments(line: str) -> list[str]:
    """The arguments of a `cfsp` command, made small; of long sweeps two jobs are enough."""
    arguments = shlex.split(line)[1:]
    if "--help" not in arguments:
        arguments += tiny(line)
        arguments = [re.sub(r"^(seed=0|criterion=\w+),.*", r"\1", word) for word in arguments]
    return arguments


def call(monkeypatch, entry, name: str, arguments: list[str]) -> int:
    """The exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        return entry() or 0
    except SystemExit as end:
        return end.code or 0


def understood(line: str) -> Parts:
    """The parts that a `cfsp` command names, built; of a sweep those of the first job."""
    words = [word for word in shlex.split(line)[1:] if word not in FLAGS and "hydra" not in word]
    single = [re.sub(r"=([\w./-]+),[\w.,/-]+$", r"=\1", word) for word in words]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Parts.of(compose("config", [*single, "device=cpu"]))
