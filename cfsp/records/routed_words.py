"""Routed words: what a card and the terminal say of a run whose MLPs are routed."""

from __future__ import annotations

from math import isnan

from cfsp.records.identity import method_name, part_name
from cfsp.records.record import Record


def routed_method(record: Record) -> str:
    """Return the method and the schedule that it is a choice of: lte (schedule routing)."""
    method, schedule = method_name(record.config), record.config.get("schedule")
    name = part_name(schedule) if schedule else method
    return method if name == method else f"{method} (schedule {name})"


def experts_text(record: Record) -> str:
    """Return among how many experts the routers choose; "" if the record does not say."""
    routes = (record.routes or {}).values()
    found = dict.fromkeys((one["experts"], one["size"]) for one in routes)
    return " or ".join(
        f"{experts} experts of {size} units" if size > 1 else f"{experts} units" for experts, size in found
    )


def measured_share(record: Record) -> str:
    """Return the active share that was measured, on evaluation texts or in training; "" if none was."""
    name = "active_share/"
    if any(one.startswith(name) for one in record.metrics["pruned"]):
        return f"{record.active:.1%}"
    reached = (record.schedule_training or {}).get("reached")
    return "" if reached is None else f"{1 - reached:.1%} in training"


def asked_share(record: Record) -> str:
    """Return the active share that was asked for; "" if the record does not say."""
    wanted = record.wanted
    return wanted.spelled(wanted.amount) if wanted.kind == "active" and not isnan(wanted.amount) else ""
