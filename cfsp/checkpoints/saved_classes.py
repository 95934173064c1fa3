"""The classes of saved models: those of transformers, or of a modelling file beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import transformers
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from cfsp.model import (
    kept_heads,
    modeling_pruned,
    modeling_routed,
    routed_kernels,
    routed_triton,
    routers,
)
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
        "AutoConfig": f"{module}.Pruned{config_class(stock).__name__}",
        "AutoModel": f"{module}.Pruned{headless(stock).__name__}",
        str(auto_class(stock.__name__)): f"{module}.Pruned{stock.__name__}",
    }


def config_class(stock: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    """Return the class of a model's config."""
    assert stock.config_class is not None, "`auto_class` knows only classes that have one"
    return stock.config_class


def headless(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the class of the same model without its head."""
    found = MODEL_MAPPING[config_class(stock)]
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
            (Path(save_directory) / MODELING_FILE).write_text(modeling_file(self))

    Made.__name__ = Made.__qualname__ = f"Pruned{stock.__name__}"
    return Made


def modeling_file(model: PreTrainedModel) -> str:
    """Return the text of a checkpoint's modelling file, with the code of modules that are not the family's.

    Its classes have `_auto_class`: transformers then copies the file where it saves such a model or config.
    """
    stock, own = stock_class(model), OWN_CODE if own_modules(model) else ()
    files = [Path(str(module.__file__)).read_text() for module in (modeling_pruned, kept_heads, *own)]
    lines = "\n\n".join(files).splitlines(keepends=True)
    config, base = config_class(stock).__name__, headless(stock).__name__
    heads = [rf"^{name}\." for name in head_modules(model)]
    return (
        "".join(line for line in lines if not line.startswith("from cfsp."))  # they are one file there
        + f"\n\nfrom transformers import {', '.join((config, base, stock.__name__))}  # noqa: E402\n"
        + class_text("PrunedConfig", config, "AutoConfig")
        + class_text("Pruned", base, "AutoModel")
        + f"    config_class = Pruned{config}\n"
        + f"    {IGNORED} = [*({base}.{IGNORED} or ()), *{heads}]\n"
        + class_text("Pruned", stock.__name__, str(auto_class(stock.__name__)))
        + f"    config_class = Pruned{config}\n"
    )


IGNORED = "_keys_to_ignore_on_load_unexpected"
"""What transformers calls weights that a class reports if they are in a checkpoint; here those of heads."""


def class_text(mixin: str, name: str, auto: str) -> str:
    """Return the beginning of a class in the modelling file."""
    title = f'"""{name} with the sizes of its blocks."""'
    return f'\n\nclass Pruned{name}({mixin}, {name}):\n    {title}\n\n    _auto_class = "{auto}"\n'


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the weights and modules that a model has beside its base model."""
    if model.base_model is not model:
        return sorted({name.partition(".")[0] for name in model.state_dict()} - {model.base_model_prefix})
    output = model.get_output_embeddings()
    return [name for name, module in model.named_children() if module is output]
