"""Flexible clipping: ends of the clip that depend on the token's probability, on a schedule or with hysteresis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Domain, Observation, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import ClipRange, Controller
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class FlexibleClip(ClipRange):
    """Dynamic clip ends.

    An open upper end is wider for rare tokens than for likely ones, which raises entropy; an open lower end likewise,
    which lowers it. The schedule says which end is open. id: the upper one at the start, closing until half of the run,
    then the lower one, closing until the end. did: the upper one opens until half of the run and stays open, the lower
    one as under id. od: one or the other as `open_end` says, which flexible_hysteresis moves. A closed end is the
    surrogate's.
    """

    title: ClassVar[str] = "Dynamic clip ends"
    paper: ClassVar[str] = "2602.09782"
    formula: ClassVar[str] = (
        r"\hat\epsilon_+(p) = \frac{1+\beta}{1-\alpha p} - 1,\quad \hat\epsilon_-(p) = 1 - \frac{1-\beta}{1+\alpha p},"
        r"\quad p = \pi_{\mathrm{old}}(o_t)"
    )
    domain: ClassVar[Domain] = "history"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob"})
    blind: ClassVar[bool] = True
    type: Literal["flexible_clip"] = "flexible_clip"
    schedule: Literal["id", "did", "od"] = setting(
        "id",
        help="Course of entropy: increase then decrease, decrease-increase-decrease, or oscillating while it decays.",
    )
    slope: float = setting(
        -0.2, help="alpha: change of an open end with the token's probability.", ge=-0.9, le=0, advanced=True
    )
    offset: float = setting(0.35, help="beta: width of an open end for the rarest tokens.", ge=0, le=0.95)
    open_end: float = setting(
        0.0,
        help="Which end is open: 1 the upper one (entropy rises), 0 the lower one (entropy falls).",
        ge=0,
        le=1,
        knob="open_end",
        show_if={"schedule": "od"},
    )

    @model_validator(mode="after")
    def _open(self) -> FlexibleClip:
        if self.offset < -self.slope:
            raise ValueError(
                f"offset is {self.offset}, below {-self.slope}: the clip of likely tokens would be empty; raise offset"
            )
        return self

    def clip(self, batch: TokenBatch, step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        old = batch.logprob.detach() if batch.old_logprob is None else batch.old_logprob
        p = old.exp().clamp(max=1)
        wide_high = (1 + self.offset) / (1 - self.slope * p) - 1
        wide_low = 1 - (1 - self.offset) / (1 + self.slope * p)
        lower, upper = self.opened(step)
        step.metrics |= {"objective/open_low": lower, "objective/open_high": upper}
        return low + lower * (wide_low - low), high + upper * (wide_high - high)

    def opened(self, step: Step) -> tuple[float, float]:
        """Return how far the lower and the upper end are open in this step, each in [0, 1]."""
        if self.schedule == "od":
            upper = step.knobs.get("open_end", self.open_end)
            return 1 - upper, upper
        passed = min(step.step / step.total_steps, 1.0) if step.total_steps > 0 else 0.0
        share = 1 - 2 * passed  # lambda: from 1 over 0 at half of the run to -1
        if share >= 0:
            return 0.0, share if self.schedule == "id" else 1 - share
        return 1 + share, 0.0 if self.schedule == "id" else 1.0


class FlexibleHysteresis(Controller):
    """Oscillating decay (OD).

    When entropy falls to a floor the upper clip end opens, until entropy is above a ceiling; then the lower one opens.
    The ceiling starts at the initial entropy and comes down to the floor by the end of the run.
    """

    title: ClassVar[str] = "Oscillating decay"
    paper: ClassVar[str] = "2602.09782"
    formula: ClassVar[str] = (
        r"\tau_- = H_{\min} = 0.2\,H_0,\quad \tau_+(k) = H_{\min} + (H_0 - H_{\min})\Bigl(1-\frac{k}{T}\Bigr)"
    )
    domain: ClassVar[Domain] = "history"
    moves: ClassVar[frozenset[str]] = frozenset({"open_end"})
    requires: ClassVar[frozenset[str]] = frozenset({"flexible_clip"})
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["flexible_hysteresis"] = "flexible_hysteresis"
    floor: float = setting(0.2, help="Entropy at which it turns upwards.", unit="x initial", ge=0, lt=1)

    def initial_state(self) -> dict[str, Any]:
        return {"initial": None}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.entropy):
            return state, {}
        initial = seen.entropy if state["initial"] is None else state["initial"]
        passed = min(seen.step / seen.total_steps, 1.0) if seen.total_steps > 0 else 0.0
        low, high = self.course(passed)
        state = {"initial": initial}
        if seen.entropy <= low * initial:
            return state, {"open_end": 1.0}
        return state, {"open_end": 0.0} if seen.entropy > high * initial else {}

    def course(self, x: float) -> tuple[float, float]:
        return self.floor, self.floor + (1 - self.floor) * (1 - x)

    def course_unit(self) -> str:
        return "x initial"


PARTS = (FlexibleClip, FlexibleHysteresis)
PAPER = paper("Flexible Entropy Control in RLVR with Gradient-Preserving Perspective", "2602.09782", 2026)
ASSUMED = (
    "The slope and offset of the open ends are not published: -0.2 and 0.35 are ours (an upper end of 0.35 for rare "
    "and 0.125 for certain tokens). The open lower end is derived from the same line as the upper one."
)


def _preset(schedule: str, title: str, summary: str, **changes: Any) -> Preset:
    clip = {"type": "flexible_clip", "schedule": schedule}
    fields: dict[str, Any] = {
        "when": "Several minibatches per step, where the clip acts at all. The course spans the whole run, so give the "
        "run its final number of steps.",
        "assumed": ASSUMED,
        "parts": [GROUP, clip, CLIP, TOKENS],
    }
    return Preset(
        name=f"flexible-clip-{schedule}",
        title=title,
        summary=summary,
        formula=FlexibleClip.formula,
        reference=PAPER,
        confidence="paper",
        **{**fields, **changes},
    )


PRESETS = (
    _preset(
        "id",
        "Flexible clipping, increase then decrease",
        "The upper clip end is wider for rare tokens at the start and closes by half of the run: entropy is raised, "
        "then let go. From there the lower end opens and closes again, which brings entropy down.",
    ),
    _preset(
        "did",
        "Flexible clipping, decrease-increase-decrease",
        "Plain clipping at the start, then an upper end that opens for rare tokens until half of the run: entropy "
        "falls, rises, and falls again as the lower end opens in the second half.",
    ),
    _preset(
        "od",
        "Flexible clipping, oscillating decay",
        "Entropy swings between a floor of a fifth of its initial value and a ceiling that comes down over the run: at "
        "the floor the upper clip end opens for rare tokens, above the ceiling the lower one does.",
        assumed=ASSUMED + " The lower end is the open one at the start; the initial entropy is that of the first step.",
        parts=[
            GROUP,
            {"type": "flexible_clip", "schedule": "od"},
            CLIP,
            TOKENS,
            {"type": "flexible_hysteresis"},
        ],
    ),
)
