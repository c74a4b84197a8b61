"""Knobs: named numbers that people steer through control.json and controllers move between steps.

A request is applied once, when its `seq` is new; what a controller owns, it may move again afterwards. A control.json
that cannot be read, or that asks for the impossible, gives a warning and never ends the run.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.events import Control, KnobSpec, RunFolder
from trainer.objectives import Knob, Objective, Observation, Step
from trainer.stream import Silent


def knobs_of(config: RunConfig, objective: Objective) -> dict[str, Knob]:
    """Return every steerable number of a run: the sampling temperature and the objective's own."""
    temperature = Knob(
        "temperature", config.sampling.temperature, 0.05, 10.0, "Divides the logits when sampling and scoring."
    )
    return {"temperature": temperature, **objective.knobs()}


class Steering:
    """The knobs in force, the controllers' state, and what was last asked for."""

    def __init__(self, config: RunConfig, objective: Objective, folder: RunFolder) -> None:
        self.config, self.objective, self.folder = config, objective, folder
        self.specs = knobs_of(config, objective)
        self.knobs = {name: knob.value for name, knob in self.specs.items()}
        self.controllers: dict[str, Any] = objective.start()
        self.applied = 0  # seq of the last request applied
        self._complained: set[str] = set()

    def described(self) -> list[KnobSpec]:
        """Return the knobs for the `started` event, with the values in force."""
        return [
            KnobSpec(name=name, value=self.knobs[name], low=spec.low, high=spec.high, help=spec.help, unit=spec.unit)
            for name, spec in self.specs.items()
        ]

    def read(self, step: int, stream: Silent) -> Control:
        """Return the latest request, or an empty one where there is none; complain once about each unreadable text."""
        try:
            text = self.folder.control.read_text("utf-8")
        except FileNotFoundError:
            return Control()
        except (OSError, UnicodeDecodeError) as error:
            return self._unreadable(str(error), step, stream)
        try:
            return Control.model_validate_json(text)
        except ValidationError as error:
            return self._unreadable(f"{error.errors()[0]['msg']}\n{text}", step, stream)

    def apply(self, control: Control, step: int, stream: Silent) -> None:
        """Let a new request take effect: clamp to each knob's range and say what changed."""
        if control.seq <= self.applied:
            return
        self.applied = control.seq
        for name, asked in control.knobs.items():
            spec = self.specs.get(name)
            if spec is None or not math.isfinite(asked):
                stream.emit(
                    "warning",
                    step,
                    code="control",
                    message=f"control.json: there is no knob {name!r} that could be {asked}",
                )
                continue
            value = min(
                max(asked, spec.low if spec.low is not None else asked), spec.high if spec.high is not None else asked
            )
            if value != asked:
                stream.emit(
                    "warning", step, code="control", message=f"{name} = {asked:g} is out of range; {value:g} was taken"
                )
            old, self.knobs[name] = self.knobs[name], value
            if value != old:
                stream.emit("knob", step, name=name, old=old, new=value, source="user", control_seq=control.seq)

    def observe(self, seen: Observation, stream: Silent) -> dict[str, float]:
        """Let the controllers move knobs after a step; pass on what a person should read, and return their figures."""
        self.controllers, changed = self.objective.control(self.controllers, seen, dict(self.knobs))
        self.knobs |= {name: value for name, value in changed.items() if name in self.knobs}
        for text in self.objective.alerts(self.controllers):
            stream.emit("alert", seen.step, code="controller", message=text)
        return self.objective.report(self.controllers)

    def step(self, number: int) -> Step:
        """Return what parts of the objective may read in a step."""
        return Step(
            knobs=dict(self.knobs),
            step=number,
            total_steps=self.config.optimiser.steps,
            seed=self.config.seed,
            max_completion_tokens=self.config.sampling.max_completion_tokens,
            memory=self.controllers,
        )

    def target(self, number: int) -> tuple[float, float] | None:
        """Return the entropy band aimed at in a step, nats."""
        return self.objective.target(number, self.config.optimiser.steps, self.knobs)

    def state(self) -> dict[str, Any]:
        """Return what resuming needs; plain JSON."""
        return {"knobs": self.knobs, "controllers": self.controllers, "applied": self.applied}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state; knobs that the objective no longer has are dropped."""
        self.knobs |= {name: value for name, value in state["knobs"].items() if name in self.knobs}
        self.controllers, self.applied = state["controllers"], state["applied"]

    def _unreadable(self, why: str, step: int, stream: Silent) -> Control:
        if why not in self._complained:
            self._complained.add(why)
            stream.emit(
                "warning", step, code="control", message=f"control.json cannot be read and is passed over: {why[:300]}"
            )
        return Control()
