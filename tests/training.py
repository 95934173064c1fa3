"""Trainings that are small enough to run in a moment."""

from cfsp.data.examples import Examples
from cfsp.data.sources import Prose
from cfsp.data.texts import Files
from cfsp.recovery.base import Setting
from cfsp.recovery.finetune import Finetune
from cfsp.training.arguments import Training
from cfsp.training.base import Change
from cfsp.training.full import Full
from cfsp.training.next_token import NextToken

CHANGE = Change(blocks=(0, 1), removed=(0.1, 0.3), importance=(0.4, 0.2))
TINY = [
    "recovery.data.window=16",
    "recovery.data.held_out=8",
    "recovery.training.max_steps=6",
    "recovery.training.evaluate_every=2",
    "recovery.training.batch_size=4",
    "recovery.training.warmup=0",
]


def run(recovery, model, tokenizer, folder, dense=None, change=CHANGE):
    examples = recovery.prepare(model, tokenizer, {"block_angular"})
    return recovery.run(Setting(model, tokenizer, change, folder, dense), examples)


def trained_with(text_file, parameters=None, objective=None, held_out=8, window=16, **options):
    """A recovery on a text."""
    defaults = {
        "epochs": 1,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "accumulation": 1,
        "warmup": 0,
        "scheduler": "linear",
        "weight_decay": 0.0,
        "evaluate_every": 2,
        "patience": None,
    }
    return Finetune(
        parameters=parameters or Full(),
        objective=objective or NextToken(),
        data=Examples(
            sources={"text": Prose(Files(str(text_file)))},
            weights=None,
            window=window,
            packing=True,
            held_out=held_out,
            seed=0,
        ),
        training=Training(**{**defaults, **options}),
        seed=0,
    )
