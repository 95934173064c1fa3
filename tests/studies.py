"""Records of studies that never were, with everything that a report can show."""

from __future__ import annotations

from cfsp.records.record import Metric, Record
from cfsp.storage.fingerprints import digest

BLOCKS = 3
PERPLEXITY = {"measure": "perplexity", "text": "x", "window": 128, "dtype": "float32"}
CLOCK = {"measure": "latency", "new_tokens": 8, "repeats": 3, "device": "cpu", "threads": 1}


def record(
    criterion="Magnitude",
    sparsity=0.2,
    seed=0,
    window=128,
    allocator="Uniform",
    path="tiny",
    options=None,
    training=None,
    **metrics,
) -> Record:
    """A record whose perplexity grows with sparsity and with the length of the criterion's name."""
    size = round(1_000_000 * (1 - sparsity / 2))
    name = f"{path}-{criterion}-{allocator}-{sparsity}-{seed}-{window}-{options}-{training is not None}"
    value = 10 + 3 * sparsity * len(criterion) + seed / 4
    protocol = PERPLEXITY | {"window": window}
    named = {"perplexity/x": (metric(10.0, protocol), metric(value, protocol)), **metrics}
    recovery = {"_target_": "cfsp.recovery.none.NoRecovery"}
    if training:
        recovery = {
            "_target_": "cfsp.recovery.finetune.Finetune",
            "parameters": {"_target_": "cfsp.training.lora.Lora"},
            "objective": {"_target_": "cfsp.training.next_token.NextToken"},
        }
    return Record(
        id=digest(name),
        created="2030-01-01T00:00:00+00:00",
        config={
            "model": {"path": path, "dtype": "auto", "device": "cpu"},
            "sites": ["mlp"],
            "sparsity": sparsity,
            "sparsity_of": "sites",
            "seed": seed,
            "criterion": {"_target_": f"cfsp.criteria.x.{criterion}", "seed": seed, **(options or {})},
            "allocator": {"_target_": f"cfsp.allocators.x.{allocator}"},
            "compensation": {"_target_": "cfsp.compensation.none.NoCompensation"},
            "schedule": {"_target_": "cfsp.schedules.one_shot.OneShot", "sparsity": sparsity},
            "calibration": {"_target_": "cfsp.data.calibration.RandomWindows", "samples": 8, "seed": seed},
            "recovery": recovery,
        },
        parameters={
            "dense": {"sites": 1, "blocks": 2, "model": 1_000_000},
            "pruned": {"sites": 1, "blocks": 2, "model": size},
        },
        sparsity={"sites": sparsity, "blocks": sparsity * 0.7, "model": sparsity / 2},
        widths={f"model.layers.{block}.mlp": [100, round(100 * (1 - sparsity))] for block in range(BLOCKS)},
        unit_cost={},
        notes={"block_statistics": {"block_angular": [0.5, 0.1 + seed / 100, 0.2]}},
        metrics={
            "dense": {key: dense for key, (dense, _) in named.items()},
            "pruned": {key: pruned for key, (_, pruned) in named.items()},
        },
        seconds={"plan": 1.5},
        peak_bytes={},
        git={"commit": "c" * 40, "dirty": False},
        environment={"versions": {"cfsp": "0.1.0"}, "device": "cpu"},
        training=training,
    )


def metric(value, protocol, better="lower", spread=None) -> Metric:
    return Metric(value, None, 3, better, protocol, spread)


def zero_shot(accuracy: float) -> dict[str, tuple[Metric, Metric]]:
    """Two tasks, one of them with a measure that papers do not report."""
    found = {}
    for name, papers in (("acc/boolq", True), ("acc/piqa", False), ("acc_norm/piqa", True)):
        protocol = {"measure": "zero-shot", "shots": 0, "papers": papers, "task": name}
        found[name] = (metric(0.8, protocol, "higher"), metric(accuracy, protocol, "higher"))
    return found


def latency(share: float) -> dict[str, tuple[Metric, Metric]]:
    """Times of one shape: a model takes this share of what the dense one does."""
    found = {}
    protocol = CLOCK | {"batch": 1, "prompt": 16}
    for stage, dense in (("prefill", 20.0), ("decode", 4.0)):
        time = dense * share
        timed = metric(time, protocol, spread=[0.9 * time, 1.2 * time])
        found[f"{stage}_ms/b1xp16"] = (metric(dense, protocol), timed)
        found[f"{stage}_speedup/b1xp16"] = (metric(1.0, protocol), metric(1 / share, protocol, "higher"))
    return found


def training(loss: float) -> dict:
    return {
        "trainable": 1000,
        "tokens": 4096,
        "steps": 4,
        "seconds": 2.0,
        "curve": [{"step": step, "loss": loss / step} for step in (1, 2, 3, 4)],
        "held_out_curve": [{"step": step, "loss": loss / step + 0.1} for step in (2, 4)],
    }


def study() -> list[Record]:
    """Three methods at two sparsities with three seeds: all that a report can show."""
    found = []
    for sparsity in (0.2, 0.5):
        for seed in (0, 1, 2):
            more = {**zero_shot(0.7 - sparsity / 2 - seed / 100), **latency(1 - sparsity / 2 + seed / 100)}
            found += [record(name, sparsity, seed, **more) for name in ("Magnitude", "Chance")]
            found.append(record("Chance", sparsity, seed, training=training(3 + seed), **more))
    return found
