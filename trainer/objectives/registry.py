"""PARTS and PRESETS: everything the families declare, by name, parts in pipeline order."""

from __future__ import annotations

from trainer.objectives import (
    advantages,
    branching,
    common,
    control,
    covariance,
    decoding,
    entropy_change,
    rewards,
    rollouts,
    selection,
    surrogates,
)
from trainer.objectives.base import STAGES, ObjectivePart
from trainer.objectives.preset import Family, Preset

FAMILIES: tuple[Family, ...] = (
    common.FAMILY,
    surrogates.FAMILY,
    covariance.FAMILY,
    entropy_change.FAMILY,
    selection.FAMILY,
    advantages.FAMILY,
    rewards.FAMILY,
    control.FAMILY,
    rollouts.FAMILY,
    branching.FAMILY,
    decoding.FAMILY,
)


def _parts() -> dict[str, type[ObjectivePart]]:
    found: dict[str, type[ObjectivePart]] = {}
    for part in (part for family in FAMILIES for module in family.modules for part in module.PARTS):
        kind = part.model_fields["type"].default
        if kind in found:
            raise TypeError(f"{part.__name__} and {found[kind].__name__} are both of the type {kind!r}; rename one")
        found[kind] = part
    return dict(sorted(found.items(), key=lambda item: STAGES.index(item[1].stage)))


def _presets() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    for family in FAMILIES:
        for preset in (preset for module in family.modules for preset in module.PRESETS):
            if preset.name in found:
                raise TypeError(f"two presets are named {preset.name!r}; rename one")
            found[preset.name] = preset.model_copy(update={"family": family.title})
    return found


PARTS: dict[str, type[ObjectivePart]] = _parts()
PRESETS: dict[str, Preset] = _presets()
