"""Identity: the id of a run and the names of its parts, both read off its config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cfsp.storage.fingerprints import digest

NOT_IDENTITY = ("results", "cache", "overwrite", "device", "logger", "save", "push", "private", "plugins")
"""Parts of the config that say where and how a run happens, not what it computes."""

AS_EVER = {"task": {"_target_": "LanguageModelling"}}
"""Parts that are left out while they are so: runs from before there was a choice keep their ids."""


def run_id(config: Mapping[str, Any]) -> str:
    """Name a run by what it computes: a hash of the config without paths, device and logger.

    A class of this package counts by its name alone, so that an id outlives a move of the code.
    """
    identity = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    if "model" in identity:
        identity["model"] = {key: value for key, value in identity["model"].items() if key != "device"}
    identity = without_homes(identity)
    return digest({key: value for key, value in identity.items() if AS_EVER.get(key) != value})


def without_homes(config: Any) -> Any:
    """The config with classes of this package by their names alone, and all others by their paths."""
    if isinstance(config, Mapping):
        return {key: without_homes(value) for key, value in config.items()} | (
            {"_target_": config["_target_"].rsplit(".", 1)[-1]}
            if str(config.get("_target_")).startswith("cfsp.")
            else {}
        )
    return [*map(without_homes, config)] if isinstance(config, list) else config


def part_name(config: Mapping[str, Any]) -> str:
    """What a part of a config is called on the command line, read off the class that it makes.

    A recovery that trains parameters for an objective is called by both: lora, importance_lora, distill.
    """
    if {"parameters", "objective"} <= config.keys():
        return recovery_name(config["parameters"], config["objective"])
    name = config["_target_"].rsplit(".", 1)[-1]
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    name = re.sub(r"_(compensation|recovery)$", "", name)
    return "none" if name == "no" else name


def recovery_name(parameters: Mapping[str, Any], objective: Mapping[str, Any]) -> str:
    """What a recovery is called by what it trains and what that learns."""
    trained, learned = part_name(parameters), part_name(objective)
    follows = parameters.get("proportional_to", "uniform")
    if follows != "uniform":
        trained = f"{follows}_{trained}"
    if learned == "next_token":
        return trained
    return "distill" if (trained, learned) == ("lora", "distillation") else f"{trained}/{learned}"
