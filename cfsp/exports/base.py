"""The base classes of exporters, and what they share: a saved model, its card, the checks of an output."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cfsp.checkpoints.card import load_example
from cfsp.checkpoints.load import HEADS, load, reading_model
from cfsp.checkpoints.save import SUMS, alone_in, carry, check_model, save, write_texts
from cfsp.checkpoints.saved_classes import auto_class, own_modules
from cfsp.machine.process import quiet
from cfsp.model.adapters import APART
from cfsp.model.shapes import Shapes
from cfsp.options import Checked
from cfsp.plans.plan import PrunePlan
from cfsp.storage.atomic import whole_folder
from cfsp.storage.seals import file_checksum

CARD = "README.md"
ORIGIN = "export.json"
"""The file of an exported folder that says what it was made of and how."""
TRAVELLING = ("plan.json", "record.json")
"""Files that say what a model is. An export has them too, unchanged."""


@dataclass(frozen=True)
class Saved:
    """A saved model, as exporters read it: the folder and what was loaded from it."""

    folder: Path
    head: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Load a model from its folder, on the CPU, in the dtype that it has there.

        Raises ValueError if the folder holds no model, or one with separate adapters or routed MLPs.
        """
        check_model(folder)
        if (folder / APART).is_dir():
            raise ValueError(
                f"{folder} keeps its adapters apart, and an export has none; expected a model that was saved "
                "with recovery.parameters.merge=true"
            )
        head = saved_head(folder)
        with quiet():
            model, tokenizer = load(folder, head=head)
        if own_modules(model):
            raise ValueError(
                f"{folder}: its MLPs are routed, which no engine here computes; expected a model whose "
                "schedule cuts, or the dense one"
            )
        return cls(folder, head, model, tokenizer)

    @property
    def shapes(self) -> Shapes:
        return Shapes.of(self.model)

    def card(self, done: str, example: str) -> str:
        """Return the model's card with what the export did to it. example: code that loads the export."""
        path = self.folder / CARD
        card = path.read_text() if path.is_file() else f"# {self.folder.name}\n"
        for own_code in (True, False):
            card = card.replace(f"```python\n{load_example(self.head, own_code)}\n```", example)
        shown = "" if example in card else f"\n\n{example}"
        return f"{card.rstrip()}\n\n## Exported\n\n{done}{shown}\n"


def saved_head(folder: Path) -> str:
    """Return the head of a saved model. Raises ValueError if its config names no class that has one."""
    with reading_model(folder):
        config, _ = PreTrainedConfig.get_config_dict(folder)
    (name,) = (config.get("architectures") or [""])[:1]
    auto = auto_class(str(name))
    for head, kind in HEADS.items():
        if kind.__name__ == auto:
            return head
    raise ValueError(
        f"{folder}: config.json has architectures={config.get('architectures')}; expected a class with one "
        f"of the heads {', '.join(HEADS)}"
    )


def check_next_token(model: PreTrainedModel) -> None:
    """Raise ValueError unless the model is a decoder that predicts the next token."""
    Shapes.of(model)  # raises for an encoder-decoder
    if auto_class(type(model).__name__) != HEADS["causal_lm"].__name__:
        raise ValueError(
            f"a {type(model).__name__} predicts no next token, which this export is for; expected a model "
            "with head=causal_lm, or cfsp-export padded"
        )


class Exporter(Checked, ABC):
    """Writes a saved model in the form that some engine loads."""

    ending: ClassVar[str]
    """What a run puts after the name of the saved folder to name the export."""

    @abstractmethod
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError if the engine cannot express the model or the tokenizer.

        A run calls it with the dense model, before anything costly.
        """

    def example(self, head: str) -> str:
        """Return code that loads the export, as a block of Markdown. head: of the model."""
        return f"```python\n{load_example(head, needs_remote_code=False)}\n```"

    def check_uneven(self, model: PreTrainedModel) -> None:  # most engines need no more
        """Raise ValueError if the engine cannot express the dense model once its blocks have other sizes."""

    @abstractmethod
    def write(self, saved: Saved, target: Path) -> None:
        """Write the model to the path, completely or not at all. It may replace what is there."""

    @abstractmethod
    def origin(self, target: Path) -> str | None:
        """Return what an export at the path says of its origin, see `origin_of`; None if it says nothing."""

    def origin_of(self, folder: Path) -> str:
        """Return JSON that names this exporter, its options, and the files of the saved model."""
        sums = folder / SUMS
        made = {
            "export": type(self).__name__,
            "options": asdict(self) if is_dataclass(self) else {},
            "model": file_checksum(sums) if sums.is_file() else None,
        }
        return json.dumps(made, sort_keys=True)

    def export(self, folder: Path, target: Path, overwrite: bool = False) -> None:
        """Read a saved model and write it in this form.

        Raises:
            ValueError: there is no model, the engine cannot express it, or the target exists and `overwrite`
                is false.
            OSError: the disk is full or cannot be written. Nothing is left then.
        """
        target = target.resolve()
        self.check_target(target, overwrite)
        if target == folder.resolve() or target in folder.resolve().parents:
            raise ValueError(f"{target} holds the model that is exported; expected another path")
        saved = Saved.read(folder)
        self.check(saved.model, saved.tokenizer)
        with alone_in(target):
            self.write(saved, target)

    def export_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        target: Path,
        plan: PrunePlan | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a model that is in memory in this form. Until then it is saved in a folder beside the target.

        plan: what was cut; it travels with the export. Raises as `export` and `cfsp.save` do.
        """
        target = target.resolve()
        self.check_target(target, overwrite)
        self.check(model, tokenizer)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as place:
            folder = Path(place) / target.stem  # its name becomes that of the export
            save(folder, model, tokenizer, plan or PrunePlan(()))
            self.export(folder, target, overwrite)

    def check_target(self, target: Path, overwrite: bool) -> None:
        """Raise ValueError if the export cannot be written there."""
        parent = target.parent
        above = next(path for path in (parent, *parent.parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(f"{target} cannot be written; expected a path in a folder that can be")
        if target.exists() and not overwrite and not is_empty_folder(target):
            raise ValueError(f"{target} exists already; expected a new path, or overwrite")
        parent.mkdir(parents=True, exist_ok=True)


class FolderExporter(Exporter):
    """An exporter that writes a folder of weights, config and tokenizer."""

    def check_target(self, target: Path, overwrite: bool) -> None:
        super().check_target(target, overwrite)
        if target.is_file():
            raise ValueError(f"{target} is a file; expected a folder")
        if target.is_dir() and not is_empty_folder(target) and not (target / "config.json").is_file():
            raise ValueError(f"{target} holds something that is no model; expected an empty folder")

    @contextmanager
    def filling(self, saved: Saved, target: Path, done: str) -> Iterator[Path]:
        """Yield a part folder for weights and configs; the rest of the model's files is added after it.

        done: for the card, what the export does to the model.
        """
        with whole_folder(target) as part, quiet():
            yield part
            carry(saved.folder, part, unchanged=True)
            for name in TRAVELLING:
                if (saved.folder / name).is_file():
                    shutil.copyfile(saved.folder / name, part / name)
            write_texts(
                part, {CARD: saved.card(done, self.example(saved.head)), ORIGIN: self.origin_of(saved.folder)}
            )

    def origin(self, target: Path) -> str | None:
        path = target / ORIGIN
        return path.read_text() if path.is_file() else None


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
