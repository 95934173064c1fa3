"""Targets: what a consumer should give so that the model, pruned so far, is led back to the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cfsp.bars import bar
from cfsp.model.block_states import states_in, states_out
from cfsp.model.blocks import places_of
from cfsp.model.sites import Site
from cfsp.model.weights import bias_of
from cfsp.passes.walk import Walk
from cfsp.plans.gates import Gates
from cfsp.statistics.moments import HELD_OUT, full_float32


class Seen:
    """What one batch was at a block and at a consumer in it. Each [batch * tokens, channels], float32."""

    before: Tensor  # the block's input
    after: Tensor  # its output
    inputs: Tensor  # the consumer's input
    output: Tensor  # what it gave, without its bias


def target_moments(dense: Walk, pruned: Walk, site: Site, target: str, gates: Gates) -> dict[str, Tensor]:
    """E[x t^T] over the tokens that count, x the consumer's input and a constant 1 in the pruned model.

    "dense":    t = what the consumer gives in the dense model
    "residual": t = what takes the residual stream after it to the dense model's: behind an attention
                y~ + (r~ - r), r the block's input; behind an MLP y + (s~ - s), s the block's output,
                y what the consumer gives, ~ in the dense model

    gates: what is decided of this block, held in the pruned model.
    site: with all of its channels, as that of every consumer is that a compensation fits anew
        (`Schedule.check`): nothing has to be cut down to what is left.
    -> target_moment, target_moment_held_out [channels + 1, outputs], float64; see `cfsp.statistics.moments`
    """
    total, held_out, count, samples = 0.0, 0.0, 0, 0
    for number, batch in enumerate(bar(dense.batches, f"target of {site.name}", "batch")):
        with watching(dense, site) as ideal:
            dense.run(number)
        with gates, watching(pruned, site) as seen:
            pruned.run(number)
        if target == "dense":
            wanted = ideal.output
        elif site.units_are_neurons:
            wanted = seen.output + ideal.after - seen.after
        else:
            wanted = ideal.output + ideal.before - seen.before
        shown, held = shown_and_held_out(batch, samples, wanted.device)
        inputs = torch.cat([seen.inputs, torch.ones_like(seen.inputs[:, :1])], dim=1)
        with full_float32():
            total = total + (inputs[shown].T @ wanted[shown]).double()
            held_out = held_out + (inputs[held].T @ wanted[held]).double()
        if not total.isfinite().all():
            raise ValueError(
                f"the target of {site.name} is NaN or infinite at calibration batch {number}; check the "
                "weights, or load the model with dtype=float32"
            )
        samples += len(batch["input_ids"])
        count += int(shown.sum())
    found = {"target_moment": total / count, "target_moment_held_out": held_out / count}
    return {name: torch.as_tensor(value) for name, value in found.items()}


def shown_and_held_out(
    batch: Mapping[str, Tensor], samples: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which tokens the attention mask shows, and which of these are held out. [batch * tokens] x 2, bool"""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).to(device).bool()
    held = (torch.arange(samples + 1, samples + len(mask) + 1, device=device) % HELD_OUT) == 0
    return mask.flatten(), (mask & held[:, None]).flatten()


@contextmanager
def watching(walk: Walk, site: Site) -> Iterator[Seen]:
    """See the passes through the walk's next block, in which the site lies."""
    seen = Seen()

    def tokens(states: Tensor) -> Tensor:
        return states.detach().flatten(0, -2).float()

    def of_consumer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = bias_of(module)
        seen.inputs = tokens(inputs[0])
        seen.output = tokens(output if bias is None else output - bias.detach())

    def of_block(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        seen.before, seen.after = tokens(states_in(args, kwargs)), tokens(states_out(output))

    consumer = walk.model.get_submodule(site.consumers[0].module)
    with ExitStack() as stack:
        stack.callback(consumer.register_forward_hook(of_consumer).remove)
        stack.callback(walk.block.register_forward_hook(of_block, with_kwargs=True).remove)
        yield seen


def check_residual(walk: Walk) -> None:
    """Raise ValueError unless a block adds what its sub-layers give to the residual stream as it is.

    Tried on the first batch and block: twice the MLP's output must move the block's output by as much.
    Behind a norm or a factor (Gemma 2, OLMo2, Granite, BERT) there is no such target for its consumer.
    """
    given: list[Tensor] = []
    moved: list[Tensor] = []

    def double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(output)
        return output * len(given)

    def of_block(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        moved.append(states_out(output))

    consumer = walk.block.get_submodule(places_of(walk.model)["mlp"].consumer)
    with ExitStack() as stack:
        stack.callback(consumer.register_forward_hook(double).remove)
        stack.callback(walk.block.register_forward_hook(of_block).remove)
        walk.run(0)
        walk.run(0)
    step, output = (moved[1] - moved[0]).float(), given[0].float().view_as(moved[0])
    rounding = torch.finfo(moved[0].dtype).eps * moved[1].float().norm()  # of a stream much larger than this
    if (step - output).norm() > 0.05 * output.norm() + rounding:
        raise ValueError(
            f"target=residual: the blocks of a {walk.model.config.model_type} do not simply add what "
            "their MLPs give to the residual stream; expected target=own or dense"
        )
