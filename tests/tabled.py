"""Records of one figure each."""

from cfsp.record import Metric, Record

NAME = "perplexity/x"
TARGETS = {"cfsp": "CFSP", "flap": "FLAP", "wanda_sp": "WandaSP"}


def record(method, sparsity, value, protocol="a", seed=0, better="lower", name=NAME, **config):
    def metric(value):
        return Metric(value, None, 1, better, {"window": protocol, "text": "x"})

    target = {"_target_": f"cfsp.criteria.x.{TARGETS.get(method, method)}", "seed": seed}
    base = {"sparsity": sparsity, "method": method, "seed": seed, "criterion": target, "sites": ["mlp"]}
    return Record(
        id=f"{method}{sparsity}{seed}{''.join(map(str, config.values()))}".replace("/", ""),
        created="",
        config=base | config,
        parameters={},
        sparsity={"model": sparsity / 2},
        widths={},
        unit_cost={},
        notes={},
        metrics={"dense": {name: metric(4.0)}, "pruned": {name: metric(value)}},
        seconds={},
        peak_bytes={},
        git=None,
        environment={},
    )
