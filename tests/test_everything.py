"""Every criterion x allocator x schedule x family, end to end: it prunes, or says why it cannot.

`make test` runs a part of the product in which any two choices meet; `make test-all` runs all of it.
"""

import pytest
import torch
from families import DECODERS, FAMILIES, all_kinds, batches, kinds_of, make
from pairwise import marked_product

import cfsp
from cfsp.model.parameter_count import count_parameters
from cfsp.running.build import build, choice_config, choices

BY_BLOCK = ("cfsp", "cfsp_released")
"""Allocators that ask how important each block is."""

CRITERIA = [name for name in choices("criterion") if name != "learned"]
OTHERS = ("movement", "lorashear", "routing", "routed_once", "unchanged")
SCHEDULES = [name for name in choices("schedule") if name not in OTHERS]
"""Both without those that learn, which need a tokenizer or each other, and the one that does nothing; they
have tests of their own."""

EVERY_SECOND = [*FAMILIES][::2]
"""Families whose compensation is the mean; least squares has the others."""


def kinds_for(criterion, allocator, schedule, model) -> list[str]:
    """All that the criterion can score, where allocator and schedule can take it."""
    able = build(choice_config("criterion", criterion, seed=0)).kinds
    kinds = [kind for kind in all_kinds(model) if kind in able]
    if able == {"block"}:
        return kinds
    if schedule == "blockwise" or allocator in (*BY_BLOCK, "global_rank_released", "error_curves"):
        return kinds_of(model)
    return kinds


def refusal(criterion, allocator, schedule, family) -> str | None:
    """What is said where the parts cannot go together."""
    if criterion == "depth" and schedule == "blockwise":
        return "needs sites that lie in blocks"
    if criterion == "depth" and allocator in BY_BLOCK:
        return "belongs to none; expected only mlp and attention in sites"
    if criterion == "depth" and allocator == "global_rank_released":
        return "knows mlp and attention"
    if allocator == "error_curves" and (criterion == "depth" or schedule == "iterative"):
        return "probes sites that lie in blocks"
    if criterion == "taylor" and family not in DECODERS:
        return "does not predict the next token; expected labels"
    return None


@pytest.mark.parametrize(
    ("criterion", "allocator", "schedule", "family"),
    marked_product(CRITERIA, choices("allocator"), SCHEDULES, [*FAMILIES]),
)
def test_everything_goes_with_everything_or_says_why_not(criterion, allocator, schedule, family):
    model = make(family)
    kinds = kinds_for(criterion, allocator, schedule, model)
    fixed = {"kinds": kinds, "criterion": criterion, "allocator": allocator, "schedule": schedule}
    if set(kinds) <= {"mlp", "attention", "query_heads"}:
        shared = {"attention", "query_heads"} <= {*kinds}  # one consumer, which cannot be fitted for both
        fixed |= {"compensation": "mean" if shared or family in EVERY_SECOND else "least_squares"}
    sparsity = 0.5 if criterion == "depth" else 0.3
    takes_steps = allocator not in ("uniform_released", "global_rank_released")
    options = {"round_to": 4} if takes_steps else {}
    options |= {"steps": 2} if schedule == "iterative" else {}
    options |= {"shares": [0.5]} if allocator == "error_curves" else {}
    message = refusal(criterion, allocator, schedule, family)
    if message:
        with pytest.raises(ValueError, match=message):
            cfsp.plan(model, batches(), sparsity=sparsity, **fixed, **options)
        return
    before = count_parameters(model, cfsp.find_sites(model, kinds))
    plan = cfsp.plan(model, batches(), sparsity=sparsity, **fixed, **options)
    cfsp.apply(plan, model)
    assert torch.isfinite(model(**batches(count=1)[0]).logits).all()
    after = count_parameters(model, cfsp.find_sites(model, kinds))
    removed = (before["sites"] - after["sites"]) / before["sites"]
    if allocator.endswith("released"):
        assert removed > 0 or allocator == "uniform_released"  # which removes no 30 % of two heads
    else:
        slack = 0.35 if "block" in kinds else 0.15  # one of two blocks, one of four heads
        assert sparsity <= removed + 1e-6 <= sparsity + slack
