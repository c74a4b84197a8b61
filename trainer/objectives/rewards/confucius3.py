"""Confucius3-Math: targeted entropy, advantages weighted by hardness, recent samples used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, demand, statistic
from trainer.objectives.preset import Preset, Reference
from trainer.objectives.reductions import counts_of, equal_rewards, group_mean, step_mean, valid_of
from trainer.objectives.stages import Blend, Normaliser, Regulariser
from trainer.objectives.stock import CLIP
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

TER = r"L \mathrel{+}= \lambda\, \big| \bar H - H^\ast \big|"
PSHW = r"A_i = (R_i - \mu)(1.256 - 0.256\, \mu), \quad R_i \in \{1, -1\}"
REFERENCE = Reference(
    title="Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning",
    year=2025,
    url="https://github.com/netease-youdao/Confucius3-Math",
)


class TargetedEntropy(Regulariser):
    """Targeted entropy (Confucius3-Math).

    Adds coefficient times the distance of the token-mean entropy from its target to the loss: entropy is pulled back
    from both sides, with the same force however far away it is.
    """

    title: ClassVar[str] = "Targeted entropy"
    formula: ClassVar[str] = TER
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "entropy_grad"})
    type: Literal["targeted_entropy"] = "targeted_entropy"
    target: float = setting(0.55, help="Entropy to hold.", unit="nats", ge=0, le=20, knob="entropy_target")
    coefficient: float = setting(1e-3, help="Weight of the distance in the loss.", ge=0, le=10)

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        mean = step_mean(demand(batch.entropy, "entropy", self), counts_of(batch))
        return self.coefficient * (mean - step.knobs["entropy_target"]).abs()

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.target)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.target, self.target


class HardnessWeight(Normaliser):
    """Hardness-weighted advantage (Confucius3-Math).

    (reward - group mean) * (1.256 - 0.256 * group mean), without a std: prompts that are seldom solved weigh more.
    Meant for rewards of 1 and -1; rewards from 0 to 1 are stretched to that range on request.
    """

    title: ClassVar[str] = "Hardness-weighted advantage"
    formula: ClassVar[str] = PSHW
    type: Literal["hardness_weight"] = "hardness_weight"
    rewards: Literal["signed", "unit"] = setting(
        "signed", help="Range of the rewards: -1 to 1, or 0 to 1, which is stretched to -1 to 1 first."
    )
    base: float = setting(1.256, help="Weight of a prompt with mean reward 0.", ge=0, le=100, advanced=True)
    slope: float = setting(0.256, help="Weight lost per mean reward.", ge=-100, le=100, advanced=True)

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        # float64: a float32 mean would give a group of equal rewards an advantage
        valid, reward = valid_of(batch), batch.reward.double()
        reward = torch.where(valid, 2 * reward - 1 if self.rewards == "unit" else reward, 0.0)
        mean = group_mean(reward, batch)
        advantage = (reward - mean) * (self.base - self.slope * mean)
        return torch.where(valid & ~equal_rewards(batch), advantage, 0.0).to(batch.reward.dtype)


class RecentSamples(Blend):
    """Recent samples without correction (Confucius3-Math).

    Completions taken over from an earlier step are learnt from as if the present policy had sampled them: their ratio
    is 1, and neither clip nor engine correction applies.
    """

    title: ClassVar[str] = "Recent samples"
    formula: ClassVar[str] = (
        r"r_t = \frac{\pi_\theta(o_t)}{\mathrm{sg}\,\pi_\theta(o_t)} = 1\ \text{if } o \text{ was taken over},\quad "
        r" r_t = \frac{\pi_\theta(o_t)}{\pi_{\mathrm{old}}(o_t)}\ \text{otherwise}"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"replayed"})
    type: Literal["recent_samples"] = "recent_samples"

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        replayed = batch.per_token(statistic(batch, "replayed", self)) > 0.5
        now = batch.logprob.detach()
        old = None if batch.old_logprob is None else torch.where(replayed, now, batch.old_logprob)
        engine = None if batch.engine_logprob is None else torch.where(replayed, torch.nan, batch.engine_logprob)
        return loss(batch.replace(old_logprob=old, engine_logprob=engine))


METHOD = [{"type": "hardness_weight"}, CLIP, {"type": "targeted_entropy"}, {"type": "const_norm"}]
PARTS = (TargetedEntropy, HardnessWeight, RecentSamples)
PRESETS = (
    Preset(
        name="confucius3",
        title="Confucius3-Math",
        summary="A small force of constant size pulls the mean entropy towards 0.55 nats from both sides, and prompts "
        "that are seldom solved weigh more. No length normalisation.",
        when='Entropy near a fixed level without a controller. Rewards should be 1 and -1; set rewards = "unit" for 0 '
        "and 1.",
        formula=TER,
        reference=REFERENCE,
        confidence="paper",
        parts=METHOD,
    ),
    Preset(
        name="confucius3-rsr",
        title="Confucius3-Math with recent samples",
        summary="The same, and groups left over from a step are used in the next one without importance correction. "
        "Entropy is held as without them.",
        when="When rollouts are thrown away to fill batches; it needs rollouts kept between steps.",
        formula=TER,
        reference=REFERENCE,
        confidence="paper",
        parts=[*METHOD, {"type": "recent_samples"}],
    ),
)
