"""Protecting: an allocator with the sites that the knowledge analysis says matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cfsp.allocators.base import Allocator
from cfsp.allocators.protection import Protected
from cfsp.plans.subject import Subject
from cfsp.statistics.knowledge_pass import knowledge_once


def protect_by_knowledge(
    subject: Subject, batches: Sequence[Mapping[str, Tensor]], allocator: Allocator
) -> tuple[Allocator, dict[str, Any]]:
    """Return the allocator with the sites that it protects, and notes on the analysis for the plan."""
    analysis = allocator.analysis
    assert analysis is not None, "the caller asked"
    deviations = knowledge_once(subject, batches, analysis)
    names = analysis.most_sensitive(deviations)
    notes = {
        "measure": analysis.measure,
        "ratios": [*analysis.ratios],
        "deviations": deviations,
        "protected": names,
    }
    return replace(allocator, protect=Protected(frozenset(names), len(subject.sites))), notes
