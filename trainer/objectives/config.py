"""ObjectiveConfig: a preset and what differs from it, resolved into the full list of parts when validated."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from trainer.objectives.base import STAGES, ObjectivePart
from trainer.objectives.registry import PARTS, PRESETS
from trainer.objectives.stages import Rollout
from trainer.part import Settings, setting

EXCLUSIVE = (
    "normaliser",
    "surrogate",
    "aggregation",
    "sampling",
    "rollout",
    "prompting",
)  # one part; a given one replaces the preset's
REQUIRED = ("normaliser", "surrogate", "aggregation")

if TYPE_CHECKING:
    PartConfig = ObjectivePart
else:
    PartConfig = Annotated[reduce(or_, PARTS.values()), Field(discriminator="type")]


def merge(preset: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the preset's parts with the given ones laid over them, in pipeline order.

    A given part changes the fields it names of the preset's part of its type, stands in for the preset's part of an
    exclusive stage, or is added.
    """
    types = {part.get("type") for part in given}
    taken = {PARTS[kind].stage for kind in types if kind in PARTS} & set(EXCLUSIVE)
    base = {part["type"]: part for part in preset if part["type"] in types or PARTS[part["type"]].stage not in taken}
    merged = [*base.values(), *(part for part in given if part.get("type") not in base)]
    changes = {part.get("type"): part for part in given}
    merged = [{**part, **changes.get(part.get("type"), {})} for part in merged]
    order = {stage: index for index, stage in enumerate(STAGES)}
    return sorted(merged, key=lambda part: order[PARTS[part["type"]].stage] if part.get("type") in PARTS else -1)


class ObjectiveConfig(Settings):
    """What is maximised: a preset, and the parts that differ from it.

    A part given here changes the fields it names of the preset's part of the same type; another surrogate, normaliser
    or aggregation takes the place of the preset's; anything else is added. After validation `parts` is the whole list.
    """

    preset: str = setting("grpo", help="Named list of parts to start from.")
    parts: list[SerializeAsAny[PartConfig]] = setting(
        help="Changes to the preset's parts; resolved to all parts in pipeline order.",
        default_factory=list,
        max_length=32,
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name, given = data.get("preset", "grpo"), data.get("parts", [])
        if not isinstance(name, str) or name not in PRESETS or not isinstance(given, (list, tuple)):
            return data  # the field validators say what is wrong
        given = [
            part.model_dump(exclude_unset=True) | {"type": part.type} if isinstance(part, ObjectivePart) else part
            for part in given
        ]
        if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in given):
            return data
        for part in given:
            if part["type"] not in PARTS:
                raise ValueError(f"objective.parts: there is no part {part['type']!r}; choose among {', '.join(PARTS)}")
        twice = {part["type"] for part in given if sum(other["type"] == part["type"] for other in given) > 1}
        if twice:
            raise ValueError(
                f"objective.parts: {', '.join(sorted(twice))} is given twice; merge its settings into one part"
            )
        return {**data, "parts": merge(PRESETS[name].parts, given)}

    @property
    def rollout(self) -> Rollout | None:
        """The part that plans the rollouts; None for plain groups."""
        return next((part for part in self.parts if isinstance(part, Rollout)), None)

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveConfig:
        types = {part.type for part in self.parts}
        for stage in EXCLUSIVE:
            found = [part.type for part in self.parts if part.stage == stage]
            if len(found) > 1:
                raise ValueError(f"objective.parts: {' and '.join(found)} are both of the stage {stage}; keep one")
            if not found and stage in REQUIRED:
                raise ValueError(f"objective.parts: a {stage} is missing; add one of {', '.join(_of_stage(stage))}")
        for part in self.parts:
            if clash := sorted(part.incompatible & types):
                raise ValueError(
                    f"objective.parts: {part.type} does not work together with {', '.join(clash)}; remove one"
                )
            if missing := sorted(part.requires - types):
                raise ValueError(f"objective.parts: {part.type} needs {', '.join(missing)}; add it to parts")
        self._one_plan()
        self._one_owner()
        self._heard()
        self._one_option()
        self._clipped()
        return self

    def _one_plan(self) -> None:
        """Refuse a side batch where a part of the rollout stage says what is sampled."""
        found = {part.stage: part.type for part in self.parts}
        if "rollout" in found and "sampling" in found:
            raise ValueError(
                f"objective.parts: {found['rollout']} plans the rollouts and leaves no room for the side batch of "
                f"{found['sampling']}; remove one"
            )

    def _one_owner(self) -> None:
        """Refuse two parts that declare, or that move, the same knob."""
        for claims in (knob_fields, lambda part: part.moves):
            owner: dict[str, str] = {}
            for part in self.parts:
                for knob in claims(part):
                    if knob in owner:
                        raise ValueError(f"objective.parts: {owner[knob]} and {part.type} both set {knob}; remove one")
                    owner[knob] = part.type

    def _heard(self) -> None:
        """Refuse a part that moves a knob which its owner does not read under its settings."""
        movers = {knob: part.type for part in self.parts for knob in part.moves}
        for owner in self.parts:
            for knob, name in knob_fields(owner).items():
                extra = type(owner).model_fields[name].json_schema_extra
                shown = extra.get("show_if") if isinstance(extra, dict) else None
                if knob not in movers or not isinstance(shown, dict):
                    continue
                for field, value in shown.items():
                    if getattr(owner, field) not in (value if isinstance(value, list) else [value]):
                        raise ValueError(
                            f"objective.parts: {movers[knob]} moves {knob}, which {owner.type} reads only with {field} "
                            f"= {value}; set that or remove {movers[knob]}"
                        )

    def _clipped(self) -> None:
        """Refuse a part that sets each token's clip where the surrogate clips nothing."""
        ranges = [part.type for part in self.parts if part.stage == "clip_range"]
        surrogate = next(part for part in self.parts if part.stage == "surrogate")
        if ranges and "clip_high" not in knob_fields(surrogate):
            raise ValueError(
                f"objective.parts: {ranges[0]} sets the clip of each token, and {surrogate.type} has no clip; "
                f"remove {ranges[0]} or take ppo_clip"
            )

    def _one_option(self) -> None:
        """Refuse two parts that want the same statistic computed differently."""
        chosen: dict[str, tuple[str, Any]] = {}
        initial = {knob: getattr(part, name) for part in self.parts for knob, name in knob_fields(part).items()}
        for part in self.parts:
            for option, value in part.options(initial).items():
                other, before = chosen.setdefault(option, (part.type, value))
                if before != value:
                    raise ValueError(
                        f"objective.parts: {other} wants {option} {before} and {part.type} wants {value}; make them one"
                    )


def knob_fields(part: ObjectivePart) -> dict[str, str]:
    """Return {knob: field} of the settings of a part that start a knob."""
    extras = {name: info.json_schema_extra for name, info in type(part).model_fields.items()}
    return {str(extra["knob"]): name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("knob")}


def _of_stage(stage: str) -> list[str]:
    return [kind for kind, part in PARTS.items() if part.stage == stage]
