"""A package of a user's own, with configs: one of each part that can be added."""

from pathlib import Path

FILES = {
    "my_pruning/__init__.py": "",
    "my_pruning/peaks.py": '''
from cfsp import InputStatistic

class InputPeak(InputStatistic):
    """max |x|"""

    name = "input_peak"

    def __init__(self):
        super().__init__()
        self.peak = 0.0

    def update(self, channels):
        self.peak = channels.abs().amax(0).double().maximum(0.0 * channels[0].double() + self.peak)

    def result(self):
        return self.peak
''',
    "my_pruning/criteria.py": '''
from dataclasses import dataclass
from typing import ClassVar

import my_pruning.peaks  # makes input_peak known
from cfsp import Criterion

@dataclass(frozen=True)
class Peak(Criterion):
    """score_u = largest input of the unit's channels"""

    power: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"input_peak"})

    def score(self, view, stat):
        return stat["input_peak"].view(view.units, view.span).amax(1) ** self.power
''',
    "my_pruning/allocators.py": '''
from dataclasses import dataclass

from cfsp.allocators.uniform import Uniform

@dataclass(frozen=True, kw_only=True)
class Last(Uniform):
    """Uniform, and the first block stays whole."""

    protect: tuple[int, ...] = (0,)
''',
    "my_pruning/recovery.py": '''
from dataclasses import dataclass

import torch
from cfsp import Recovery
from cfsp.recovery.base import Recovered

@dataclass(frozen=True)
class Scaled(Recovery):
    """Multiplies the last norm by a number."""

    by: float

    def prepare(self, model, tokenizer, statistics):
        return None

    def run(self, setting, examples):
        with torch.no_grad():
            setting.model.base_model.norm.weight.mul_(self.by)
        return Recovered(setting.model)
''',
    "my_pruning/evaluators.py": '''
from dataclasses import dataclass

from cfsp import Evaluator, Metric

@dataclass(frozen=True)
class Blocks(Evaluator):
    """Counts blocks."""

    def protocol(self, model, tokenizer):
        return {"measure": "blocks"}

    def run(self, model, tokenizer):
        count = model.config.num_hidden_layers
        return {"blocks": Metric(count, None, 1, "lower", self.protocol(model, tokenizer))}
''',
    "my_pruning/families.py": """
import cfsp
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

class MyConfig(LlamaConfig):
    model_type = "my_llama"

class MyForCausalLM(LlamaForCausalLM):
    config_class = MyConfig

AutoConfig.register("my_llama", MyConfig)
AutoModelForCausalLM.register(MyConfig, MyForCausalLM)
cfsp.LAYOUTS["my_llama"] = cfsp.LAYOUTS["llama"]
""",
    "conf/criterion/peak.yaml": "_target_: my_pruning.criteria.Peak\npower: 1.0\n",
    "conf/allocator/last.yaml": "_target_: my_pruning.allocators.Last\n",
    "conf/recovery/scaled.yaml": "_target_: my_pruning.recovery.Scaled\nby: 0.5\n",
    "conf/evaluation/blocks.yaml": "blocks: {_target_: my_pruning.evaluators.Blocks}\n",
    "conf/experiment/mine.yaml": """# @package _global_
defaults:
  - override /criterion: peak
  - override /allocator: last
  - override /recovery: scaled
  - override /evaluation: [blocks]
plugins: [my_pruning.families]
""",
}


def write(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
