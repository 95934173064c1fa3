"""Costs: the multiply-accumulates (MACs) of a forward pass, and the time of a function call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cfsp.model.blocks import is_causal, layout_of, stacks_of
from cfsp.model.model_inputs import inputs_of_tokens


@torch.no_grad()
def macs(model: PreTrainedModel, tokens: int) -> float:
    """Return the number of MACs of one forward pass over one sequence. An encoder-decoder reads it twice."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    with eagerly(model), FlopCounterMode(display=False) as counter:
        model(**counted_inputs(model, ids), use_cache=False)
    return counter.get_total_flops() / 2


@contextmanager
def eagerly(model: PreTrainedModel) -> Iterator[None]:
    """Use the attention whose matrix products every torch version counts, and that runs without data.

    Falcon's attention cannot be set; it calls torch's, whose plain kernel is such a one.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.set_attn_implementation(attention)  # pyright: ignore[reportArgumentType]  # set in every model


def counted_inputs(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """Return the arguments for a pass that only counts. ids: [batch, tokens]. -> name -> [batch, tokens]

    Without data transformers cannot see that a decoder's tokens are one text; with a mask it does not look.
    """
    inputs = inputs_of_tokens(model, ids)
    one_decoder = len(stacks_of(model)) == 1 and layout_of(model).causal
    return inputs | ({"attention_mask": torch.ones_like(ids)} if ids.is_meta and one_decoder else {})


@torch.no_grad()
def read_prompt(model: PreTrainedModel, ids: Tensor) -> Any:
    """Run the pass that fills the cache and gives the first new token; of other models, their one pass.

    ids: [batch, tokens]
    """
    if not is_causal(model):
        return model(**inputs_of_tokens(model, ids))
    return model(input_ids=ids, use_cache=True, logits_to_keep=1)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, by the device's own clock."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        work()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
