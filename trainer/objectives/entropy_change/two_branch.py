"""OPEFO and entropy polarity: updates that raise entropy and updates that lower it, weighed as two branches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.entropy_change.first_order import CHANGE_NEEDS, change
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of
from trainer.objectives.stages import Controller, TokenWeight
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def branches(change: Tensor, lift: Tensor | float) -> Tensor:
    """Return 1 + lift where an update would raise entropy, 1 - lift where it would lower it, 1 elsewhere, [N]."""
    return 1 + lift * change.sign()


class EntropyFlow(TokenWeight):
    """Balanced entropy flow (OPEFO).

    Predicts each token's entropy change and weighs rising tokens by 1 + lambda and falling ones by 1 - lambda, with the
    lambda that makes the two flows of the step cancel: what is learnt stays, its net effect on entropy goes.
    """

    title: ClassVar[str] = "Balanced entropy flow"
    paper: ClassVar[str] = "2605.11491"
    formula: ClassVar[str] = (
        r"\lambda^* = \frac{D-U}{D+U},\quad U = \sum_{\Delta H_t > 0} \Delta H_t,\ "
        r"D = \sum_{\Delta H_t < 0} |\Delta H_t|,\quad w_t = 1 + \lambda^* \operatorname{sign}(\Delta H_t)"
    )
    domain: ClassVar[Domain] = "step"
    type: Literal["entropy_flow"] = "entropy_flow"
    estimate: Literal["exact", "simplified"] = setting(
        "exact",
        help="The exact first-order change -A (S - N), or -A p (1 - p)(log p + H), which leaves out the other tokens.",
    )

    def reads(self) -> frozenset[Statistic]:
        return CHANGE_NEEDS if self.estimate == "exact" else frozenset({"entropy"})

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, counts = batch.need("advantage"), counts_of(batch)
        predicted = torch.where(counts, self._change(batch), 0)
        up, down = predicted.clamp(min=0).sum(), -predicted.clamp(max=0).sum()
        total = up + down
        lift = float((down - up) / total) if float(total) > 0 else 0.0
        step.metrics["objective/flow_lambda"] = lift
        return advantage * branches(predicted, lift)

    def _change(self, batch: TokenBatch) -> Tensor:
        """Return the entropy change that each token's update would cause, [N], nats per unit of step size."""
        if self.estimate == "exact":
            return change(batch, batch.need("advantage"))
        logprob, entropy = batch.logprob.detach(), statistic(batch, "entropy", self).detach()
        p = logprob.exp()
        return -batch.need("advantage") * p * (1 - p) * (logprob + entropy)


class EntropyPolarity(TokenWeight):
    """Entropy polarity (PAPO).

    The sign of the exact first-order entropy change tells expanding from contracting updates. While entropy is below
    the target expanding ones weigh 1 + strength and contracting ones 1 - strength; above it the other way round.
    """

    title: ClassVar[str] = "Entropy polarity"
    paper: ClassVar[str] = "2605.11775"
    formula: ClassVar[str] = (
        r"P_t = -A_t (S_t - N_t),\quad w_t = 1 + \kappa u_k \operatorname{sign}(P_t),\quad "
        r"u_k = \operatorname{clip}\left(\frac{H^*_k - \operatorname{EMA}(H)}{\delta}, -1, 1\right)"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = CHANGE_NEEDS
    incompatible: ClassVar[frozenset[str]] = frozenset({"entropy_flow"})  # it would undo what this one moves
    type: Literal["entropy_polarity"] = "entropy_polarity"
    strength: float = setting(0.5, help="How much weight moves between the branches.", ge=0, le=1)
    renormalise: bool = setting(False, help="Divide the weights by their mean over the step.", advanced=True)
    phase: float = setting(
        0.0,
        help="1 favours updates that raise entropy, -1 those that lower it; entropy_phase moves it.",
        ge=-1,
        le=1,
        advanced=True,
        knob="polarity_phase",
    )

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, counts = batch.need("advantage"), counts_of(batch)
        predicted = torch.where(counts, change(batch, advantage), 0)
        weight = branches(predicted, self.strength * step.knobs["polarity_phase"])
        step.metrics["objective/expanding_share"] = float((predicted > 0).sum() / counts.sum().clamp(min=1))
        if self.renormalise:
            mean = torch.where(counts, weight, 0).sum() / counts.sum().clamp(min=1)
            weight = torch.where(mean > 0, weight / torch.where(mean > 0, mean, 1), weight)
        return advantage * weight


class EntropyPhase(Controller):
    """Entropy phase (PAPO).

    After each step the phase is the distance from a running mean of the entropy to the target, over `width`, at most 1
    either way.
    """

    title: ClassVar[str] = "Entropy phase"
    paper: ClassVar[str] = "2605.11775"
    formula: ClassVar[str] = r"u_k = \operatorname{clip}\left((H^* - \operatorname{EMA}(H)) / \delta, -1, 1\right)"
    domain: ClassVar[Domain] = "history"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    moves: ClassVar[frozenset[str]] = frozenset({"polarity_phase"})
    requires: ClassVar[frozenset[str]] = frozenset({"entropy_polarity"})
    type: Literal["entropy_phase"] = "entropy_phase"
    target: float = setting(0.5, help="Entropy to hold.", unit="nats", ge=0, le=20, knob="entropy_target")
    width: float = setting(0.2, help="Distance from the target at which the phase is full.", unit="nats", gt=0, le=20)
    decay: float = setting(0.9, help="Share of the running mean that stays in a step.", ge=0, lt=1, advanced=True)

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.entropy):
            return state, {}
        mean = self.decay * state.get("mean", seen.entropy) + (1 - self.decay) * seen.entropy
        phase = (knobs["entropy_target"] - mean) / self.width
        return {"mean": mean}, {"polarity_phase": min(max(phase, -1.0), 1.0)}

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.target)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.target, self.target


PARTS = (EntropyFlow, EntropyPolarity, EntropyPhase)
PRESETS = (
    Preset(
        name="opefo",
        title="OPEFO",
        summary="Updates that would raise entropy are weighed up and those that would lower it down, or the other way "
        "round, just so far that the predicted flows cancel: entropy stays where it is while the policy learns.",
        when="One update per rollout batch: the prediction holds on fresh rollouts.",
        formula=EntropyFlow.formula,
        reference=paper("On-policy entropy flow optimisation", "2605.11491", 2026),
        confidence="secondary",
        assumed="The entropy change is the exact first-order one, where the paper's estimate leaves out the tokens "
        "that were not drawn (estimate = simplified); lambda is a constant of the step.",
        parts=[GROUP, {"type": "entropy_flow"}, CLIP, TOKENS],
    ),
    Preset(
        name="entropy-polarity",
        title="Entropy polarity (PAPO)",
        summary="Each token's update is told apart by the sign of the entropy change it causes. While entropy is below "
        "its target expanding updates weigh more, above it contracting ones; neither kind is ever removed.",
        when="A target to hold from both sides, without a term in the loss.",
        formula=EntropyPolarity.formula,
        reference=paper("Entropy polarity", "2605.11775", 2026),
        confidence="reconstructed",
        assumed="Only the idea was at hand: the polarity is the exact first-order change, the phase a clipped distance "
        "to a constant target of 0.5 nats over 0.2 nats, the strength 0.5; weights are not renormalised.",
        parts=[GROUP, {"type": "entropy_polarity"}, CLIP, TOKENS, {"type": "entropy_phase"}],
    ),
)
