"""Targets: the outputs of a consumer that bring the partly pruned model back to the dense one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.compensation.base import Compensation
from cfsp.model.block_states import states_in, states_out
from cfsp.model.blocks import places_of
from cfsp.model.sites import Site
from cfsp.model.weights import bias_of
from cfsp.passes.forward import counted_tokens
from cfsp.passes.walk import Walk, walking
from cfsp.plans.gates import Gates
from cfsp.statistics.moments import HELD_OUT, full_float32


class Seen:
    """One batch's values at a block and at a consumer in it. Each [batch * tokens, channels], float32."""

    before: Tensor  # the block's input
    after: Tensor  # its output
    inputs: Tensor  # the consumer's input
    output: Tensor  # the consumer's output without its bias


def target_moments(dense: Walk, pruned: Walk, site: Site, target: str, gates: Gates) -> dict[str, Tensor]:
    """Return E[x t^T] over the tokens that count.

    x: the consumer's input in the pruned model and a constant 1.
    "dense":    t = the consumer's output in the dense model
    "residual": t = the output that moves the residual stream to the dense model's: after attention
                y~ + (r~ - r), after an MLP y + (s~ - s). y: the consumer's output, r: the block's
                input, s: the block's output, ~: in the dense model, whose walk may be at a later block

    gates: apply the cuts that are decided in this block to the pruned model.
    site: has all of its channels, because `Schedule.check` refuses to refit a consumer that sites share.
    -> target_moment, target_moment_held_out [channels + 1, outputs], float64; see `cfsp.statistics.moments`
    """
    total, held_out, count, samples = 0.0, 0.0, 0, 0
    for number, batch in enumerate(bar(dense.batches, f"target of {site.name}", "batch")):
        with watching(dense, None if target == "residual" and site.units_are_neurons else site) as ideal:
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
    """Return which tokens count, and which of these are held out. [batch * tokens] x 2, bool"""
    mask = counted_tokens(batch).to(device)
    held = (torch.arange(samples + 1, samples + len(mask) + 1, device=device) % HELD_OUT) == 0
    return mask.flatten(), (mask & held[:, None]).flatten()


@contextmanager
def watching(walk: Walk, site: Site | None) -> Iterator[Seen]:
    """Record the values of passes through the walk's next block, which contains the site.

    Without a site, only those of the block.
    """
    seen = Seen()

    def tokens(states: Tensor) -> Tensor:
        return states.detach().flatten(0, -2).float()

    def of_consumer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bias = bias_of(module)
        seen.inputs = tokens(inputs[0])
        seen.output = tokens(output if bias is None else output - bias.detach())

    def of_block(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        seen.before, seen.after = tokens(states_in(args, kwargs)), tokens(states_out(output))

    with ExitStack() as stack:
        if site is not None:
            consumer = walk.model.get_submodule(site.consumers[0].module)
            stack.callback(consumer.register_forward_hook(of_consumer).remove)
        stack.callback(walk.block.register_forward_hook(of_block, with_kwargs=True).remove)
        yield seen


def check_residual(model: PreTrainedModel, compensation: Compensation) -> None:
    """Raise ValueError unless a block adds its sub-layers' outputs to the residual stream unchanged.

    The check doubles the MLP's output in the first block on eight tokens; the block's output must change by
    the same amount. After a norm or a factor (Gemma 2, OLMo2, Granite, BERT) the compensation's target does
    not exist.
    """
    asked, accepted = "compensation target=residual", "compensation.target=own or dense"
    if compensation.bridges:
        asked, accepted = "compensation bridge", "compensation=none"
        if compensation.rewrites:
            asked, accepted = "compensation.bridge=true", "compensation.bridge=false"
    with walking(model, [{"input_ids": torch.arange(8)[None]}]) as walk:
        step, output, rounding = doubled(walk)
    if (step - output).norm() > 0.05 * output.norm() + rounding:
        raise ValueError(
            f"{asked}: the blocks of a {model.config.model_type} do not simply add what their MLPs give to "
            f"the residual stream; expected {accepted}"
        )


def doubled(walk: Walk) -> tuple[Tensor, Tensor, Tensor]:
    """Return how the output of the walk's first block changes if its MLP gives twice as much.

    -> the change, the MLP's output, both [batch, tokens, hidden], and the largest rounding error []
    """
    given: list[Tensor] = []
    moved: list[Tensor] = []

    def double(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(output)
        return output * len(given)

    def of_block(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        moved.append(states_out(output))

    consumer = walk.block.get_submodule(places_of(walk.model, walk.blocks[walk.at])["mlp"].consumer)
    with ExitStack() as stack:
        stack.callback(consumer.register_forward_hook(double).remove)
        stack.callback(walk.block.register_forward_hook(of_block).remove)
        walk.run(0)
        walk.run(0)
    step, output = (moved[1] - moved[0]).float(), given[0].float().view_as(moved[0])
    rounding = torch.finfo(moved[0].dtype).eps * moved[1].float().norm()  # the stream may be much larger
    return step, output, rounding
