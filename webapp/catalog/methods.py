"""The objectives of the catalogue as people look for them: searched, filtered by facets, counted, sorted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import groupby
from urllib.parse import urlencode

from django.http import QueryDict

from trainer.objectives import PRESETS, STAGES, ObjectiveConfig, Preset
from trainer.objectives.base import ObjectivePart
from trainer.objectives.preview import changes, missing, part_words, reads, statistics
from trainer.statistics import STATISTICS, StatisticInfo

CONFIDENCES = {
    "code": ("From the authors’ code", "The formula was read in the authors’ or a mainstream implementation."),
    "paper": ("From the paper", "The formula was read in the paper; no code of the authors was compared."),
    "secondary": ("From other code", "The formula comes from another source that quotes the paper."),
    "reconstructed": ("Reconstructed", "Only an abstract or summary was at hand; what was missing is filled in."),
    "own": ("Isentrope’s own", "Made here; there is no paper to compare with."),
}
STATUSES = {"launchable": "Launchable", "evaluation": "Evaluation only", "experimental": "Experimental"}
SORTS = {"family": "Family", "year": "Newest", "name": "Name"}
MANY = 200  # characters of a search


@dataclass(frozen=True)
class Method:
    """One preset with what follows from its parts."""

    preset: Preset
    config: ObjectiveConfig

    @property
    def name(self) -> str:
        return self.preset.name

    @cached_property
    def own(self) -> list[ObjectivePart]:
        """The parts in which it differs from plain GRPO."""
        return changes(self.config)

    @cached_property
    def stages(self) -> list[str]:
        """Where in the pipeline it acts, in order."""
        return list(dict.fromkeys(part.stage for part in self.own))

    @cached_property
    def reads(self) -> frozenset[str]:
        return reads(self.config)

    @cached_property
    def statistics(self) -> list[StatisticInfo]:
        return statistics(self.config)

    @cached_property
    def missing(self) -> list[StatisticInfo]:
        """The statistics a run cannot have; with any, the method can only be evaluated."""
        return missing(self.config)

    @property
    def year(self) -> int:
        return self.preset.reference.year if self.preset.reference else 0

    @property
    def status(self) -> list[str]:
        found = ["evaluation" if self.missing else "launchable"]
        return [*found, "experimental"] if self.preset.experimental else found

    @cached_property
    def words(self) -> tuple[tuple[int, str], ...]:
        """Texts a search looks through, with what a hit in them is worth."""
        source = self.preset.reference
        paper = f"{source.title} {source.arxiv}" if source else ""
        parts = " ".join(f"{part.type} {part_words(type(part))[0]}" for part in self.own)
        rest = f"{self.preset.summary} {self.preset.when} {' '.join(self.reads)} {' '.join(self.stages)}"
        texts = ((8, f"{self.name} {self.preset.title}"), (4, f"{paper} {parts}"), (2, self.preset.family), (1, rest))
        return tuple((worth, text.lower().replace("_", " ")) for worth, text in texts)

    def score(self, terms: list[str]) -> int:
        """Return how well the terms fit, 0 where one is found nowhere."""
        hits = [max((worth for worth, text in self.words if term in text), default=0) for term in terms]
        return sum(hits) if all(hits) else 0


@cache
def methods() -> tuple[Method, ...]:
    """Return every method, in the order of the registry."""
    return tuple(Method(preset, ObjectiveConfig(preset=preset.name)) for preset in PRESETS.values())


@dataclass(frozen=True)
class Facet:
    """One way to narrow the list: which values a method has, and how a value is called."""

    name: str
    title: str
    values: Callable[[Method], list[str]]
    order: list[str] | None = None  # None: as the methods bring them
    label: Callable[[str], str] = lambda value: value.replace("_", " ").capitalize()
    hint: Callable[[str], str] = lambda value: ""


FACETS = (
    Facet("family", "Family", lambda method: [method.preset.family], label=str),
    Facet("stage", "Acts on", lambda method: method.stages, order=list(STAGES)),
    Facet(
        "statistic",
        "Reads",
        lambda method: sorted(method.reads),
        order=list(STATISTICS),
        label=lambda value: value.replace("_", " "),
        hint=lambda value: STATISTICS[value].help if value in STATISTICS else "",
    ),
    Facet("year", "Year", lambda method: [str(method.year)] if method.year else []),
    Facet(
        "confidence",
        "Confidence",
        lambda method: [method.preset.confidence],
        order=list(CONFIDENCES),
        label=lambda value: CONFIDENCES[value][0] if value in CONFIDENCES else value,
        hint=lambda value: CONFIDENCES[value][1] if value in CONFIDENCES else "",
    ),
    Facet(
        "status",
        "Status",
        lambda method: method.status,
        order=list(STATUSES),
        label=lambda value: STATUSES.get(value, value),
    ),
)


@dataclass(frozen=True)
class Choice:
    """A value of a facet as it is offered: how many methods it would leave, and whether it is chosen."""

    value: str
    label: str
    hint: str
    count: int
    chosen: bool


@dataclass(frozen=True)
class MethodFilter:
    """One view of the catalogue; equal filters have equal URLs. Values of a facet are alternatives, facets add up."""

    q: str = ""
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sort: str = "family"

    @classmethod
    def read(cls, query: QueryDict) -> MethodFilter:
        """Return the filter a URL asks for; what no method has is ignored."""
        known = {facet.name: {value for method in methods() for value in facet.values(method)} for facet in FACETS}
        given = {name: dict.fromkeys(query.getlist(name)) for name in known}
        chosen = {name: tuple(value for value in values if value in known[name]) for name, values in given.items()}
        sort = query.get("sort", "family")
        return cls(
            q=query.get("q", "").replace("\x00", "").strip()[:MANY],
            chosen={name: values for name, values in chosen.items() if values},
            sort=sort if sort in SORTS else "family",
        )

    @property
    def narrowed(self) -> bool:
        return bool(self.q or self.chosen)

    def url(self, **changes: object) -> str:
        """Return the query string of this filter with `changes`; defaults are not written."""
        wanted = replace(self, **changes)  # type: ignore[arg-type]
        pairs = [("q", wanted.q), *((name, value) for name, values in wanted.chosen.items() for value in values)]
        pairs.append(("sort", "" if wanted.sort == "family" else wanted.sort))
        written = urlencode([(name, value) for name, value in pairs if value])
        return f"?{written}" if written else ""

    def without(self, name: str, value: str) -> str:
        """Return the query string with one value less."""
        left = {
            key: tuple(item for item in items if (key, item) != (name, value)) for key, items in self.chosen.items()
        }
        return self.url(chosen=left)

    def select(self) -> list[Method]:
        """Return the methods it lets through: best hits first where something is searched, else in its order."""
        found = [method for method in self._searched() if all(self._passes(method, facet) for facet in FACETS)]
        if self.sort == "name":
            return sorted(found, key=lambda method: method.preset.title.lower())
        if self.sort == "year":
            return sorted(found, key=lambda method: -method.year)
        return sorted(found, key=lambda method: -method.score(self._terms)) if self.q else found

    def groups(self, found: list[Method]) -> list[tuple[str, list[Method]]]:
        """Return the methods under the heads of their families, or under none where the order is another."""
        if self.q or self.sort != "family":
            return [("", found)] if found else []
        return [(family, list(those)) for family, those in groupby(found, key=lambda method: method.preset.family)]

    def choices(self, facet: Facet) -> list[Choice]:
        """Return what a facet offers, counted under the other facets and the search."""
        others = [other for other in FACETS if other is not facet]
        left = [method for method in self._searched() if all(self._passes(method, other) for other in others)]
        values = dict.fromkeys(value for method in methods() for value in facet.values(method))
        ordered = [value for value in facet.order if value in values] if facet.order else list(values)
        if facet.name == "year":
            ordered.sort(reverse=True)
        chosen = self.chosen.get(facet.name, ())
        counted = [(value, sum(value in facet.values(method) for method in left)) for value in ordered]
        return [
            Choice(value, facet.label(value), facet.hint(value), count, value in chosen) for value, count in counted
        ]

    def marks(self) -> list[tuple[str, str, str]]:
        """Return (facet, label, URL without it) of everything chosen."""
        facets = {facet.name: facet for facet in FACETS}
        return [
            (facets[name].title, facets[name].label(value), self.without(name, value))
            for name, values in self.chosen.items()
            for value in values
        ]

    @property
    def _terms(self) -> list[str]:
        return self.q.lower().replace("_", " ").split()

    def _searched(self) -> list[Method]:
        return [method for method in methods() if method.score(self._terms)] if self.q else list(methods())

    def _passes(self, method: Method, facet: Facet) -> bool:
        chosen = self.chosen.get(facet.name, ())
        return not chosen or any(value in chosen for value in facet.values(method))
