"""EMPG: confident steps of a trajectory weigh more, and a step that leads to clarity gets a bonus."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.advantages.responses import answered, bounds, response_entropy
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, step_mean, valid_of
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Empg(TokenShaper):
    """Entropy-modulated advantage (EMPG).

    Every turn of a trajectory is one step with a mean entropy, scaled to [0, 1] over the batch. Its advantage is
    multiplied by exp(-k h), normed to mean 1; a step followed by another one gets a bonus for the clarity of that next
    step; the mean over steps is taken off at the end. A response without turns is a trajectory of one step.
    """

    title: ClassVar[str] = "Entropy-modulated advantage (EMPG)"
    paper: ClassVar[str] = "2509.09265"
    formula: ClassVar[str] = (
        r"A_s \leftarrow A_s\,\frac{e^{-k h_s}}{\overline{e^{-k h}}} + \zeta\,e^{-k' h_{s+1}}, "
        r"\qquad A \leftarrow A - \bar A"
    )
    domain: ClassVar[Domain] = "step"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy", "trajectory", "turn"})
    type: Literal["empg"] = "empg"
    k: float = setting(1.0, help="How fast the weight falls with a step's entropy.", ge=0, le=100)
    k_future: float = setting(1.0, help="How fast the bonus falls with the next step's entropy.", ge=0, le=100)
    zeta: float = setting(0.05, help="Weight of the bonus for a clear next step.", ge=0, le=10)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        counted = answered(batch)
        steps, entropy = valid_of(counted), response_entropy(counted, self)
        least, most = bounds(entropy, steps)
        h = torch.where(steps, (entropy - least) / (most - least + 1e-8), torch.zeros_like(entropy))
        weight = (-self.k * h).exp()
        weight = weight / (step_mean(weight, steps) + 1e-8)
        bonus = self.zeta * self._following((-self.k_future * h).exp(), counted)
        shaped = batch.need("advantage") * batch.per_token(weight) + batch.per_token(bonus)
        return shaped - step_mean(completion_mean(shaped, counted), steps)

    def _following(self, values: Tensor, batch: TokenBatch) -> Tensor:
        """Return the value of the next turn of each completion's trajectory, [S]; 0 after the last one."""
        if not {"trajectory", "turn"} <= batch.extra.keys() or not batch.sequences:
            return torch.zeros_like(values)
        trajectory, turn = (batch.extra[name].long() for name in ("trajectory", "turn"))
        _, trajectory = torch.unique(trajectory, return_inverse=True)
        turn, turns = turn - turn.min(), int(turn.max() - turn.min()) + 2
        key, steps = trajectory * turns + turn, valid_of(batch).to(values.dtype)
        found, place = torch.unique(torch.cat([key, key + 1]), return_inverse=True)
        here, following = place.split(batch.sequences)
        number = values.new_zeros(found.shape[0]).index_add(0, here, steps)
        total = values.new_zeros(found.shape[0]).index_add(0, here, values * steps)
        return (total / number.clamp(min=1))[following]


PARTS = (Empg,)
PRESETS = (
    Preset(
        name="empg",
        title="EMPG",
        summary="Steps taken with confidence get a larger advantage of either sign, unsure ones a smaller; a step "
        "that leads to a clear next one gets a bonus. Confident right steps lose entropy faster, confident wrong ones "
        "gain it faster, uncertain ones hardly move.",
        when="Agents of several turns; with one turn only the weight acts.",
        formula=Empg.formula,
        reference=paper(
            "Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents", "2509.09265", 2025
        ),
        confidence="secondary",
        parts=[GROUP, {"type": "empg"}, CLIP, TOKENS],
    ),
)
