"""Records of routed runs that never were."""

from dataclasses import replace

from studies import metric, record

MAKERS = {
    "teal": {"_target_": "cfsp.schedules.route_makers.Threshold", "weighted": False},
    "wina": {"_target_": "cfsp.schedules.route_makers.Threshold", "weighted": True},
    "moefication": {"_target_": "cfsp.schedules.route_makers.Predictor", "signs": False},
    "deja_vu": {"_target_": "cfsp.schedules.route_makers.Predictor", "signs": True},
    "oracle": {"_target_": "cfsp.schedules.route_makers.Oracle"},
}
PROTOCOL = {"measure": "routing", "text": "x"}


def routed_record(method="teal", asked=0.5, used=None, value=20.0, blocks=3, **options):
    """A run of a method that was asked for a share of units, and whose tokens use another.

    used: None if it was not measured.
    """
    measured = {} if used is None else {"active_share/x": (metric(1, PROTOCOL), metric(used, PROTOCOL))}
    one = record("Learned", 0, **measured)
    learned = {"_target_": "cfsp.schedules.routed.RoutedTraining"}
    learned |= {"pruner": {"_target_": "cfsp.training.routing.Routing"}}
    once = {"_target_": "cfsp.schedules.routed.RoutedOnce", "maker": MAKERS.get(method)}
    schedule = (learned if method == "lte" else once) | {"active": asked, "sparsity": 0}
    one.metrics["pruned"]["perplexity/x"] = replace(one.metrics["pruned"]["perplexity/x"], value=value)
    sites = [f"model.layers.{block}.mlp" for block in range(blocks)]
    sizes = {"sites": 96, "blocks": 200, "model": 1_000_000}
    options = {
        "id": f"{method}{asked}{used}".replace(".", ""),
        "config": one.config | {"schedule": schedule},
        "notes": {"active": asked},
        "widths": {site: [512, 512] for site in sites},
        "routes": {site: {"router": "LearnedRouter", "experts": 64, "size": 8} for site in sites},
        "parameters": {"dense": sizes, "pruned": sizes | {"blocks": 205, "model": 1_021_000}},
        "sparsity": {"sites": 0.0, "blocks": -0.025, "model": -0.021},
    } | options
    return replace(one, **options)
