"""Costs: the multiply-accumulates (MACs) of a forward pass, and the time of a function call."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cfsp.model.model_inputs import inputs_of_tokens


@torch.no_grad()
def macs(model: PreTrainedModel, tokens: int) -> float:
    """Return the number of MACs of one forward pass over one sequence. An encoder-decoder reads it twice."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # its matrix products are counted by every torch version
    try:
        with FlopCounterMode(display=False) as counter:
            model(**inputs_of_tokens(model, ids), use_cache=False)
    finally:
        model.set_attn_implementation(attention)  # pyright: ignore[reportArgumentType]  # set in every model
    return counter.get_total_flops() / 2


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
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
