"""Records of one figure each."""

from cfsp.records.record import Metric, Record

NAME = "perplexity/x"
TARGETS = {"cfsp": "CFSP", "flap": "FLAP", "wanda_sp": "WandaSP"}


def record(method, sparsity, value, protocol="a", seed=0, better="lower", name=NAME, **config):
    def metric(value):
        return Metric(value, None, 1, better, {"window": protocol, "text": "x"})

    target = {"_target_": f"cfsp.criteria.x.{TARGETS.get(method, method)}", "seed": seed}
    base = {
        "model": {"path": "m"},
        "sites": ["mlp"],
        "sparsity": sparsity,
        "sparsity_of": "sites",
        "seed": seed,
        "method": method,
        "criterion": target,
        "allocator": {"_target_": "cfsp.allocators.x.Uniform"},
        "compensation": {"_target_": "cfsp.compensation.x.NoCompensation"},
    }
    return Record(
        id=f"{method}{sparsity}{seed}{''.join(map(str, config.values()))}".replace("/", ""),
        created="",
        config=base | config,
        parameters={stage: {"sites": 1, "blocks": 2, "model": 4} for stage in ("dense", "pruned")},
        sparsity={"sites": sparsity, "blocks": sparsity / 2, "model": sparsity / 2},
        widths={},
        unit_cost={},
        notes={},
        metrics={"dense": {name: metric(4.0)}, "pruned": {name: metric(value)}},
        seconds={},
        peak_bytes={},
        git=None,
        environment={},
    )
