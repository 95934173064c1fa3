"""Comparison: group records, so that one axis shows only comparable values."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from statistics import fmean, median, stdev
from typing import Any

from cfsp.records.protocols import comparable, named_files
from cfsp.records.record import Record
from cfsp.records.wanted import Wanted
from cfsp.tables.ranking import ALIKE, best_of, why_no_best


@dataclass(frozen=True)
class Spread:
    """A mean over records, with the standard deviation if there are several."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = [*values]
        known = len(found) > 1 and all(map(isfinite, found))
        return cls(fmean(found), stdev(found) if known else None, len(found))


@dataclass(frozen=True)
class Point:
    """The records of one method at one asked sparsity, active share or target, usually one per seed."""

    method: str
    wanted: Wanted
    records: tuple[Record, ...]

    @property
    def parameters(self) -> float:
        """Measured number of parameters of the whole model, mean over the records."""
        return fmean(record.parameters["pruned"]["model"] for record in self.records)

    def removed(self, base: str) -> float:
        """Return the measured fraction removed of sites, blocks or model, mean over the records."""
        return fmean(record.sparsity[base] for record in self.records)

    @property
    def active(self) -> float:
        """Share of the MLPs' units that a token uses, mean over the records; 1 if nothing is routed."""
        return fmean(record.active for record in self.records)

    @property
    def routed(self) -> bool:
        """Whether units are chosen per token, so that none is removed."""
        return all(record.routed for record in self.records)

    def spread(self, read: Callable[[Record], float]) -> Spread:
        return Spread.of(read(record) for record in self.records)


@dataclass(frozen=True)
class Measure:
    """One quantity, for records with the same protocol and dense model.

    names: the metrics to average.
    """

    title: str
    names: tuple[str, ...]
    protocol: Mapping[str, Any]
    dense: float
    better: str  # "lower" or "higher"
    records: tuple[Record, ...]

    @property
    def quantity(self) -> str:
        """The quantity's name without the data set."""
        return self.title.split("/")[0]

    def read(self, record: Record) -> float:
        return fmean(record.metrics["pruned"][name].value for name in self.names)


def points(records: Iterable[Record], names: Mapping[str, str]) -> list[Point]:
    """Group records by method and what they ask for. names: record id -> method, in the result's order."""
    cells = defaultdict(list)
    for record in records:
        cells[names[record.id], record.wanted].append(record)
    places = {method: place for place, method in enumerate(dict.fromkeys(names.values()))}
    ordered = sorted(cells, key=lambda cell: (places[cell[0]], cell[1]))
    return [Point(method, wanted, tuple(cells[method, wanted])) for method, wanted in ordered]


def by_method(found: Iterable[Point]) -> dict[str, list[Point]]:
    """Return method -> its points, the largest model first. Methods keep their order."""
    lines = defaultdict(list)
    for point in found:
        lines[point.method].append(point)
    return {method: sorted(line, key=lambda point: -point.parameters) for method, line in lines.items()}


def ranked(names: Mapping[str, str], measures: Iterable[Measure]) -> dict[str, str]:
    """Sort names by the first measure at the method's largest sparsity, the best method first.

    Methods whose largest sparsity is smaller follow, then methods without a value.
    """
    keys: dict[str, tuple[Any, ...]] = {}
    for measure in measures:
        for method, line in by_method(points(measure.records, names)).items():
            last = max(line, key=lambda point: point.wanted)
            keys.setdefault(method, (-last.wanted.less, rank_of(last, measure), method))
    last_key = (inf, inf)
    return dict(sorted(names.items(), key=lambda item: keys.get(item[1], (*last_key, item[1]))))


def rank_of(point: Point, measure: Measure) -> float:
    """Return a number that is lower for better values; infinite for NaN."""
    value = point.spread(measure.read).mean
    if isnan(value):
        return inf
    return value if measure.better == "lower" else -value


@dataclass(frozen=True)
class Contest:
    """Points of methods at one asked share or target that removed, and use, similar fractions.

    best: by `best_of`; empty if no point may be called the best. why_none: the reason.
    """

    wanted: Wanted
    points: tuple[Point, ...]
    best: tuple[Point, ...]
    why_none: str


def contests(found: Iterable[Point], measure: Measure) -> list[Contest]:
    """Return the contests among points, by what was asked for and measured. The best has the best mean.

    A gap of more than a percentage point between sizes or active shares starts a new contest.
    """
    shares = defaultdict(list)
    for point in found:
        shares[point.wanted].append(point)
    made = []
    for wanted, members in sorted(shares.items()):
        for rivals in by_size(members):
            means = [point.spread(measure.read).mean for point in rivals]
            removed, active = zip(*((one.removed("model"), one.active) for one in rivals), strict=True)
            best = tuple(rivals[index] for index in best_of(means, removed, measure.better, active))
            made.append(Contest(wanted, tuple(rivals), best, why_no_best(means, removed, active)))
    return made


def by_size(found: Iterable[Point]) -> list[list[Point]]:
    """Split points at gaps of more than a percentage point in what they removed, then in what they use."""
    chains = split_at_gaps(found, lambda point: point.removed("model"))
    return [part for chain in chains for part in split_at_gaps(chain, lambda point: point.active)]


def split_at_gaps(found: Iterable[Point], share: Callable[[Point], float]) -> list[list[Point]]:
    """Sort points by a share, and split them at gaps of more than a percentage point. NaN is alone."""
    chains: list[list[Point]] = []
    before = -inf
    for point in sorted(found, key=lambda point: (isnan(share(point)), share(point))):
        if not share(point) - before <= ALIKE:
            chains.append([])
        chains[-1].append(point)
        before = share(point)
    return chains


def by_model(records: Iterable[Record]) -> list[list[Record]]:
    """Group records by dense model: the same path, options of loading and size."""
    groups = defaultdict(list)
    for record in records:
        model = {key: value for key, value in record.config["model"].items() if key != "device"}
        groups[model["path"], record.parameters["dense"]["model"], key_of(model)].append(record)
    return [groups[key] for key in sorted(groups)]


def studies(records: Sequence[Record]) -> list[list[Record]]:
    """Group the comparable records of each dense model: those linked by shared perplexities or tasks.

    Records without such a measurement form one group.
    """
    found = []
    for group in by_model(records):
        linked: list[dict[str, Record]] = []
        for measure in [*perplexities(group), *zero_shots(group)]:
            members = {record.id: record for record in measure.records}
            for other in [other for other in linked if other.keys() & members.keys()]:
                linked.remove(other)
                members = other | members
            linked.append(members)
        known = {key for members in linked for key in members}
        rest = [record for record in group if record.id not in known]
        found += [[*members.values()] for members in linked] + ([rest] if rest else [])
    return found


def perplexities(records: Iterable[Record]) -> list[Measure]:
    """Return the perplexities of one model's records, a measure per text, protocol and dense value.

    Dense values are compared to five digits, because machines differ in the last digits.
    """
    groups = defaultdict(list)
    for record in records:
        for name, metric in record.metrics["pruned"].items():
            if name.startswith("perplexity/"):
                dense = record.metrics["dense"][name].value
                groups[name, key_of(comparable(metric.protocol)), f"{dense:.5g}"].append(record)
    found = []
    for (name, *_), members in sorted(groups.items()):
        dense = members[0].metrics["dense"][name]
        found.append(Measure(name, (name,), dense.protocol, dense.value, "lower", tuple(members)))
    return found


def latencies(records: Iterable[Record], stage: str) -> list[Measure]:
    """Return the milliseconds of prefill or decode of one model's records, a measure per shape and protocol.

    The dense value is the median over the records, because each record timed the dense model too.
    """
    groups = defaultdict(list)
    for record in records:
        for name, metric in record.metrics["pruned"].items():
            if name.startswith(f"{stage}_ms/"):
                groups[name, key_of(comparable(metric.protocol))].append(record)
    found = []
    for (name, _), members in sorted(groups.items()):
        dense = median(record.metrics["dense"][name].value for record in members)
        protocol = members[0].metrics["pruned"][name].protocol
        title = f"{stage}, batch {protocol['batch']}, prompt {protocol['prompt']}"
        found.append(Measure(title, (name,), protocol, dense, "lower", tuple(members)))
    return found


def zero_shots(records: Iterable[Record]) -> list[Measure]:
    """Return means of the zero-shot accuracies in papers, a measure per set of tasks and protocol."""
    groups = defaultdict(list)
    for record in records:
        chosen = {name: one for name, one in record.metrics["pruned"].items() if one.protocol.get("papers")}
        key = tuple(
            (name, key_of(comparable(metric.protocol)), f"{record.metrics['dense'][name].value:.5g}")
            for name, metric in sorted(chosen.items())
        )
        if key:
            groups[key].append(record)
    found = []
    for key, members in sorted(groups.items()):
        names = tuple(name for name, *_ in key)
        dense = fmean(members[0].metrics["dense"][name].value for name in names)
        protocols = [[one.metrics["pruned"][name].protocol for one in members] for name in names]
        protocol = shared([{**some[0], **named_files(some)} for some in protocols])
        title = names[0] if len(names) == 1 else f"mean of {len(names)} tasks"
        found.append(Measure(title, names, protocol, dense, "higher", tuple(members)))
    return found


def shared(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that are equal in all protocols."""
    first, *others = protocols
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}


def key_of(data: Any) -> str:
    """Return JSON data as a text that can be compared and sorted."""
    return json.dumps(data, sort_keys=True)


def pareto(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the pairs on the Pareto front (lower is better), sorted by the first number.

    Pairs with NaN or infinity are skipped.
    """
    front: list[int] = []
    whole = [index for index, pair in enumerate(pairs) if all(map(isfinite, pair))]
    for index in sorted(whole, key=lambda index: pairs[index]):
        if not front or pairs[index][1] < pairs[front[-1]][1]:
            front.append(index)
    return front
