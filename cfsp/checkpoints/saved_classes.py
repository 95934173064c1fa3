"""The classes of saved models: those of transformers, or of a modelling file beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import transformers
from transformers import MODEL_MAPPING, PreTrainedModel

from cfsp.model import modeling_pruned, modeling_routed, routed_kernels, routed_triton, routers
from cfsp.model.modeling_pruned import OWN_MODULES, Pruned

MODELING_FILE = "modeling_pruned.py"
"""Name of the modelling file in a checkpoint."""

OWN_CODE = (routed_kernels, routed_triton, routers, modeling_routed)
"""Files of modules that are not the family's; where one is needed they follow `modeling_pruned`."""

AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}
"""Ending of a class that can be saved -> auto class that loads it."""


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the model's class in transformers, also if it was loaded from a pruned checkpoint.

    Raises ValueError if this class cannot be saved.
    """
    name = type(model).__name__.removeprefix("Pruned")
    stock = getattr(transformers, name, None)
    if stock is None or auto_class(name) is None:
        raise ValueError(
            f"a {name} cannot be saved; expected a class of transformers that ends in one of "
            f"{', '.join(AUTO_CLASSES)} (adapters of peft: merge_and_unload() first)"
        )
    return stock


def auto_class(name: str) -> str | None:
    """Return the name of the auto class that loads a class of this name, by its ending."""
    return next((auto for ending, auto in AUTO_CLASSES.items() if name.endswith(ending)), None)


def auto_map(stock: type[PreTrainedModel]) -> dict[str, str]:
    """Return auto class -> class in the modelling file."""
    module = Path(MODELING_FILE).stem
    return {
        "AutoModel": f"{module}.Pruned{headless(stock).__name__}",
        str(auto_class(stock.__name__)): f"{module}.Pruned{stock.__name__}",
    }


def headless(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class of the same model without its head."""
    assert stock.config_class is not None, "`auto_class` knows only classes that have one"
    found = MODEL_MAPPING[stock.config_class]
    first = found[0] if isinstance(found, tuple) else found
    assert first is not None, "every family has such a class"
    return first


def own_modules(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return what the modules that are not the family's say of themselves."""
    return [cast(Any, one).describe() for one in model.modules() if type(one).__name__ in OWN_MODULES]


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make the class that a checkpoint's modelling file defines. Saving it also writes that file."""

    class Made(Pruned, stock):  # pyright: ignore[reportIncompatibleMethodOverride]  # one keyword is taken out
        def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
            super().save_pretrained(save_directory, *args, **options)
            (Path(save_directory) / MODELING_FILE).write_text(modeling_file(stock, bool(own_modules(self))))

    Made.__name__ = Made.__qualname__ = f"Pruned{stock.__name__}"
    return Made


def modeling_file(stock: type[PreTrainedModel], own: bool = False) -> str:
    """Return the text of a checkpoint's modelling file. own: with the code of modules not the family's."""
    names = [headless(stock).__name__, stock.__name__]
    files = [
        Path(str(module.__file__)).read_text() for module in (modeling_pruned, *(OWN_CODE if own else ()))
    ]
    lines = "\n\n".join(files).splitlines(keepends=True)
    return (
        "".join(line for line in lines if not line.startswith("from cfsp."))  # they are one file there
        + f"\n\nfrom transformers import {', '.join(names)}  # noqa: E402\n"
        + "".join(
            f'\n\nclass Pruned{name}(Pruned, {name}):\n    """{name} with the sizes of its config."""\n'
            for name in names
        )
    )
