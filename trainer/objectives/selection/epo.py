"""EPO: an entropy bonus, smoothed towards the history of each turn's entropy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, counts_of, step_mean
from trainer.objectives.stages import Controller, Regulariser
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

PREFIX = "objective/turn_entropy_"
LONGEST = 1024  # turns remembered; later ones count as the last


class EntropySmoothing(Regulariser):
    """Entropy bonus with smoothing (EPO).

    Rewards entropy, and charges for leaving the range between two multiples of the running mean of earlier steps, for
    each turn of a trajectory by itself. As described a token pays in proportion to its distance from the range; as
    released it pays a constant, whose gradient is zero, so that the plain bonus alone trains. Turns without a history
    are free.
    """

    title: ClassVar[str] = "Entropy smoothing"
    paper: ClassVar[str] = "2509.22576"
    formula: ClassVar[str] = (
        r"L = L_{\text{policy}} - c\left(\bar H - \lambda\, b_k \bar P\right),\quad "
        r"P_t = a\left([H_t - \kappa_r \bar h_s]_+ + [\kappa_l \bar h_s - H_t]_+\right)"
    )
    domain: ClassVar[Domain] = "history"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "entropy_grad", "turn"})
    requires: ClassVar[frozenset[str]] = frozenset({"epo_phases"})
    type: Literal["entropy_smoothing"] = "entropy_smoothing"
    variant: Literal["described", "released"] = setting(
        "described", help="A price that grows with the distance, or the constant of the authors' code."
    )
    coefficient: float = setting(
        1e-3, help="Weight of the entropy in the loss.", ge=-1, le=1, knob="entropy_coefficient"
    )
    smoothing: float = setting(1.0, help="Weight of the price against the entropy.", ge=0, le=1000)
    low: float = setting(0.8, help="The range begins at this multiple of the turn's history.", ge=0, le=100)
    high: float = setting(1.2, help="The range ends at this multiple of the turn's history.", ge=0, le=100)
    price: float = setting(0.1, help="Price of a nat outside; as released, of being outside.", ge=0, le=1000)
    mode: Literal["token", "completion"] = setting(
        "token", help="Compare each token's entropy with the range, or the mean of each completion."
    )
    from_turn: int = setting(
        0,
        help="Smooth only where some completion of the step has reached this turn; the authors' code waits for half of "
        "the longest trajectory, 25.",
        ge=0,
        le=10_000,
        advanced=True,
    )
    weight: float = setting(
        1.0, help="Factor on the price; epo_phases moves it.", ge=0, le=10, advanced=True, knob="smoothing_weight"
    )

    @model_validator(mode="after")
    def _ordered(self) -> EntropySmoothing:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, {self.high}; lower it")
        return self

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy, counts = statistic(batch, "entropy", self), counts_of(batch)
        turn = statistic(batch, "turn", self).long().clamp(0, LONGEST - 1)
        self._report(batch, turn, step)
        coefficient = step.knobs["entropy_coefficient"]
        step.metrics["objective/entropy_coefficient"] = coefficient
        price = step.knobs["smoothing_weight"] * step_mean(self._price(batch, turn, step), counts)
        return -coefficient * (step_mean(entropy, counts) - self.smoothing * price)

    def _price(self, batch: TokenBatch, turn: Tensor, step: Step) -> Tensor:
        """Return what each token pays, [N]."""
        entropy = statistic(batch, "entropy", self)
        means = step.memory.get("epo_phases", {}).get("mean", [])
        if not means or not len(turn) or int(turn.max()) < self.from_turn:
            return torch.zeros_like(entropy)
        table = entropy.new_tensor([math.nan if mean is None else mean for mean in means])
        usual = torch.where(turn < len(means), table[turn.clamp(max=len(means) - 1)], math.nan)
        usual, level = batch.per_token(usual), entropy
        if self.mode == "completion":
            level = batch.per_token(completion_mean(entropy, batch))
        known, usual = torch.isfinite(usual), torch.nan_to_num(usual)
        above, below = (level - self.high * usual).relu(), (self.low * usual - level).relu()
        if self.variant == "released":
            inside = (level > self.low * usual) & (level < self.high * usual)
            return torch.where(known & ~inside, self.price, torch.zeros_like(entropy))
        return torch.where(known, self.price * (above + below), torch.zeros_like(entropy))

    def _report(self, batch: TokenBatch, turn: Tensor, step: Step) -> None:
        """Write the mean entropy of each turn's tokens, for the controller to remember."""
        entropy, counts = statistic(batch, "entropy", self).detach(), counts_of(batch)
        owner = batch.per_token(turn)[counts]
        if not len(owner):
            return
        number = torch.bincount(owner)
        total = torch.bincount(owner, weights=entropy[counts])
        for place in range(len(number)):
            if number[place]:
                step.metrics[f"{PREFIX}{place}"] = float(total[place] / number[place])


class EPOPhases(Controller):
    """History and phases (EPO).

    Remembers the mean entropy of each turn over all steps so far, and lets the price of smoothing fade: slowly over the
    first half of the horizon, faster over the second.
    """

    title: ClassVar[str] = "Turn history and phases"
    paper: ClassVar[str] = "2509.22576"
    formula: ClassVar[str] = (
        r"b_k = 1 - 0.2\,(1 - e^{-2p}) \text{ in the first half},\quad 0.8\, e^{-3p} \text{ in the second}"
    )
    domain: ClassVar[Domain] = "history"
    moves: ClassVar[frozenset[str]] = frozenset({"smoothing_weight"})
    requires: ClassVar[frozenset[str]] = frozenset({"entropy_smoothing"})
    type: Literal["epo_phases"] = "epo_phases"
    fading: bool = setting(True, help="Whether the price fades over the horizon.")
    horizon: int = setting(
        150, help="Steps until the price has faded.", unit="steps", ge=2, le=1_000_000, show_if={"fading": True}
    )

    def initial_state(self) -> dict[str, Any]:
        return {"mean": [], "steps": []}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        found = {int(name.removeprefix(PREFIX)): v for name, v in seen.metrics.items() if name.startswith(PREFIX)}
        length = max([len(state["mean"]), *(turn + 1 for turn in found)])
        means = [*state["mean"], *([None] * (length - len(state["mean"])))]
        steps = [*state["steps"], *([0] * (length - len(state["steps"])))]
        for turn, value in found.items():
            steps[turn] += 1
            before = value if means[turn] is None else means[turn]
            means[turn] = before + (value - before) / steps[turn]
        moved = {"smoothing_weight": phase_weight(seen.step, self.horizon)} if self.fading else {}
        return {"mean": means, "steps": steps}, moved


def phase_weight(done: int, horizon: int) -> float:
    """Return the factor on the price after so many steps; past the horizon it rests."""
    half = horizon / 2
    if done < half:
        return 1 - 0.2 * (1 - math.exp(-2 * done / half))
    return 0.8 * math.exp(-3 * min((done - half) / half, 1.0))


PARTS = (EntropySmoothing, EPOPhases)
PRESETS = (
    Preset(
        name="epo",
        title="EPO",
        summary="An entropy bonus for agents over several turns, and a price on entropy that leaves the range of what "
        "the same turn had in earlier steps, in either direction. It damps the swings between confusion and collapse, "
        "and fades as the run goes on.",
        when="Trajectories of several turns; with one turn it smooths the entropy of the whole run.",
        formula=EntropySmoothing.formula,
        reference=paper("EPO: Entropy-regularized Policy Optimization for LLM Agents", "2509.22576", 2025),
        confidence="code",
        variants="In the authors' code the price is a constant outside the range, so its gradient is zero (variant = "
        "released), and it counts only in batches that reach turn 25 (from_turn). Their runs use ranges from 0 to 2 "
        "and from 0.5 to 1.5 and prices of 0.05 and 0.1.",
        parts=[GROUP, CLIP, {"type": "entropy_smoothing"}, TOKENS, {"type": "epo_phases"}],
    ),
)
