"""The model of a config, its MLPs and what calibration measures there, for the scripts of this study."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hydra import compose, initialize_config_dir
from transformers import PreTrainedModel

from cfsp.model.find_sites import find_sites
from cfsp.model.sites import Site
from cfsp.plans.subject import Subject
from cfsp.running.build import CONF, build
from cfsp.statistics.base import Stats
from cfsp.statistics.cached import collect_once
from cfsp.storage.cache import Cache


def calibrated(overrides: Sequence[str], needs: Collection[str]) -> tuple[PreTrainedModel, list[Site], Stats]:
    """Load the model and calibrate. overrides: as for the command `cfsp`; a launcher is ignored."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [one for one in overrides if not one.startswith("hydra")])
    model, tokenizer = build(config.model)
    sites = find_sites(model, ["mlp"])
    batches = build(config.calibration).batches(tokenizer)
    subject = Subject(model, sites, Cache.at(config.cache))
    return model, sites, collect_once(subject, sites, batches, needs)
