"""Samples of MLPs: their inputs and activations on calibration batches, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cfsp.bars import bar
from cfsp.model.routers import LearnedRouter
from cfsp.model.sites import Site
from cfsp.model.weights import weight_of
from cfsp.passes.forward import shown_tokens
from cfsp.passes.walk import walking
from cfsp.plans.grouping import order_of
from cfsp.plans.routes import layer_paths
from cfsp.schedules.route_makers import MLPSamples, fit_router, most_active
from cfsp.schedules.share_search import BlockTrial

TOKENS = 16384
"""At most so many tokens of each block are kept, evenly spread: activations are wide."""


def sample_mlps(
    model: PreTrainedModel, sites: Sequence[Site], batches: Sequence[Mapping[str, Tensor]]
) -> Iterator[tuple[Site, MLPSamples]]:
    """Yield the MLPs in the order of the blocks, with the samples of each. Padding is left out."""
    by_block = {site.block: site for site in sites}
    total = sum(batch["input_ids"].numel() for batch in batches)
    every = max(1, -(-total // TOKENS))
    with walking(model, batches) as walk:
        for block in bar(range(len(walk.blocks)), "sample the MLPs", "block"):
            site = by_block.get(block)
            samples: tuple[list[Tensor], list[Tensor]] = ([], [])
            handles = []
            trial = None
            if site is not None:
                producers, consumer = layer_paths(site)
                for path, kept in zip((producers[0], consumer), samples, strict=True):
                    module = model.get_submodule(path)
                    handles.append(module.register_forward_pre_hook(keeping(kept, batches, every)))
                trial = trial_of(model, site, walk.block, batches)
                handles.append(walk.block.register_forward_hook(trial.keep, with_kwargs=True))
            walk.advance()
            for handle in handles:
                handle.remove()
            if site is not None:
                found = torch.cat(samples[0]), torch.cat(samples[1])
                yield site, MLPSamples(*found, channel_norms(model, site), neuron_weights(model, site), trial)


def trial_of(
    model: nn.Module, site: Site, block: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> BlockTrial:
    """Return what computes the block of an MLP again, with masks."""
    producers, consumer = layer_paths(site)
    layers = [model.get_submodule(path) for path in (*producers, consumer)]
    sizes = [weight_of(layer).numel() for layer in layers]
    return BlockTrial(block, layers, [shown_tokens(batch) for batch in batches], sizes)


def keeping(kept: list[Tensor], batches: Sequence[Mapping[str, Tensor]], every: int):
    """Return a hook that keeps every n-th row of a module's input. The batches come in order."""

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        shown = shown_tokens(batches[len(kept) % len(batches)])
        rows = rows if shown is None else rows[shown.to(rows.device)]
        kept.append(rows[::every].detach().clone())

    return keep


def channel_norms(model: nn.Module, site: Site) -> list[Tensor]:
    """Return the norms of the weights that read each channel: per producer, then the consumer. [channels]"""
    members = {member.module: member for member in (*site.producers, *site.consumers)}
    found = []
    for member in members.values():
        weight = weight_of(model.get_submodule(member.module)).detach().float()
        own = member in site.consumers
        found.append(weight.norm(dim=1 - member.dim if own else member.dim))
    return found


def group_neurons(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    grouping: str,
    size: int,
    seed: int,
) -> dict[str, Tensor]:
    """Return site name -> the order of its neurons that puts those of an expert together. [neurons]"""
    if size == 1:
        return {site.name: torch.arange(site.units) for site in sites}
    found = {}
    if grouping == "co_activation":
        for site, samples in sample_mlps(model, sites, batches):
            active = samples.activations.abs().float()
            features = (active > active.median(dim=1, keepdim=True).values).float().t()
            found[site.name] = order_of(grouping, features, size, seed).cpu()
        return found
    for site in bar(sites, "group neurons", "MLP"):
        found[site.name] = order_of(grouping, neuron_weights(model, site), size, seed).cpu()
    return found


def neuron_weights(model: nn.Module, site: Site) -> Tensor:
    """Return the first producer's weights, a row per neuron. [neurons, hidden]"""
    member = site.producers[0]
    weight = weight_of(model.get_submodule(member.module)).detach().movedim(member.dim, 0)
    return weight.narrow(0, member.offset, site.units)


@torch.no_grad()
def predictors(
    model: PreTrainedModel,
    sites: Sequence[Site],
    batches: Sequence[Mapping[str, Tensor]],
    size: int,
    active: float,
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Return site name -> weights [experts, inputs] and bias of a router that predicts active experts.

    Its logits have a mean of 0 and a standard deviation of 1 over tokens and experts: what is added to them
    says where scores begin, whatever the share, and none is so sure that training cannot turn it.
    """
    found = {}
    for site, samples in sample_mlps(model, sites, batches):
        x = samples.inputs.float()
        router = LearnedRouter(x.shape[1], site.units // size, size).to(x.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit_router(router, x, most_active(samples, size, active))
        logits = router.logits(x)
        router.last.bias.data -= logits.mean()
        spread = logits.std().clamp_min(1e-6)
        found[site.name] = {name: (weight / spread).cpu() for name, weight in router.state_dict().items()}
    return found
