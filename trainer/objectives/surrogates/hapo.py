"""HAPO: one normalised log-entropy of each token steers normaliser, clip and advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, ObjectivePart, Statistic, Step, statistic
from trainer.objectives.common.group_norm import GroupNorm
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import clip_of, log_ratio
from trainer.objectives.reductions import (
    completion_tokens,
    counts_of,
    equal_rewards,
    group_extreme,
    group_sum,
    nearest_quantile,
    valid_of,
)
from trainer.objectives.stages import ClipRange, Normaliser, TokenWeight
from trainer.objectives.stock import TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Variant = Literal["described", "released"]
VARIANT_HELP = "As described, h in [-1, 1]; or as released, where low-entropy tokens get a positive h too."


def relative_entropy(batch: TokenBatch, pivot: float, variant: Variant, part: ObjectivePart) -> Tensor:
    """Return h, [N]: log-entropy relative to the pivot quantile, each side over its largest magnitude; 0 if masked.

    The released code divides the negative side by its (negative) minimum, which turns its sign.
    """
    entropy, counts = statistic(batch, "entropy", part).detach(), counts_of(batch)
    if not bool(counts.any()):
        return torch.zeros_like(entropy)
    logs = entropy.clamp(min=1e-8).log()
    away = logs - nearest_quantile(logs[counts], pivot)
    above, below = away[counts].max().clamp(min=0), -away[counts].min().clamp(max=0)
    up = away / torch.where(above > 0, above, torch.ones_like(above))
    down = away / torch.where(below > 0, below, torch.ones_like(below))
    down = -down if variant == "released" else down
    return torch.where(counts, torch.where(away > 0, up, down), torch.zeros_like(away))


class TokenPooledNorm(Normaliser):
    """Token-pooled group advantage (HAPO).

    Every token carries its completion's reward; mean and (biased) std are taken over all tokens of the group, so long
    completions count for more. A group in which a value reaches `limit` falls back to the group advantage of GRPO.
    """

    title: ClassVar[str] = "Token-pooled group advantage"
    paper: ClassVar[str] = "2509.16591"
    formula: ClassVar[str] = (
        r"A_i = \frac{r_i - \mu_g}{\sigma_g + 10^{-6}},\quad "
        r" \mu_g = \frac{\sum_{i\in g} |o_i| r_i}{\sum_{i\in g} |o_i|}"
    )
    type: Literal["token_pooled_norm"] = "token_pooled_norm"
    epsilon: float = setting(1e-6, help="Added to the std.", gt=0, le=1, advanced=True)
    limit: float = setting(5.0, help="Magnitude at which a group falls back to GRPO.", gt=0, le=1000, advanced=True)

    def normalise(self, batch: TokenBatch, step: Step) -> Tensor:
        valid = valid_of(batch)
        reward = torch.where(valid, batch.reward.double(), torch.zeros((), dtype=torch.float64, device=valid.device))
        tokens = completion_tokens(batch).double()
        total = group_sum(tokens, batch).clamp(min=1)
        centred = reward - group_sum(tokens * reward, batch) / total
        std = (group_sum(tokens * centred.square(), batch) / total).sqrt()
        pooled = torch.where(valid & ~equal_rewards(batch), centred / (std + self.epsilon), 0.0)
        counted = torch.where(tokens > 0, pooled.abs(), torch.zeros_like(pooled))
        extreme = group_extreme(counted, batch, largest=True) >= self.limit
        plain = GroupNorm(epsilon=self.epsilon).normalise(batch, step).double()
        return torch.where(extreme, plain, pooled).to(batch.reward.dtype)


class HAPOClip(ClipRange):
    """Entropy-adapted clip (HAPO).

    Low-entropy tokens may fall further (the lower end grows with -h), high-entropy tokens may rise further (the upper
    end grows with h); the other end stays the surrogate's.
    """

    title: ClassVar[str] = "Entropy-adapted clip"
    paper: ClassVar[str] = "2509.16591"
    formula: ClassVar[str] = (
        r"\epsilon_- \to \epsilon_- (1 - \alpha h_t)\ \text{if}\ h_t \le 0;\quad "
        r" \epsilon_+ \to \epsilon_+ (1 + \alpha h_t)\ \text{if}\ h_t > 0"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["hapo_clip"] = "hapo_clip"
    variant: Variant = setting("described", help=VARIANT_HELP)
    strength: float = setting(1.0, help="alpha: how far an end moves with h.", ge=0, le=1)
    pivot: float = setting(0.8, help="Quantile of the step's entropy at which h is 0.", ge=0, le=1)

    def clip(self, batch: TokenBatch, step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        h = relative_entropy(batch, self.pivot, self.variant, self)
        return low * (1 - self.strength * h.clamp(max=0)), high * (1 + self.strength * h.clamp(min=0))


class HAPOWeight(TokenWeight):
    """Redistributed advantage (HAPO).

    A(1 + beta h) for high-entropy tokens whose ratio has left the inner half of their clip, and for low-entropy tokens
    whose ratio is still inside it; others keep A. The clip is the adapted one where hapo_clip is there.
    """

    title: ClassVar[str] = "Redistributed advantage"
    paper: ClassVar[str] = "2509.16591"
    formula: ClassVar[str] = (
        r"A_t \to A_t (1 + \beta h_t)\ \text{if}\ (h_t > 0) \ne \bigl(1-\tfrac{\epsilon_-}{2} < r_t <"
        r" 1+\tfrac{\epsilon_+}{2}\bigr)"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "old_logprob"})
    type: Literal["hapo_weight"] = "hapo_weight"
    variant: Variant = setting("described", help=VARIANT_HELP)
    strength: float = setting(1.0, help="beta: how much the advantage changes with h.", ge=0, le=1)
    pivot: float = setting(0.8, help="Quantile of the step's entropy at which h is 0.", ge=0, le=1)

    def reweigh(self, batch: TokenBatch, step: Step) -> Tensor:
        h = relative_entropy(batch, self.pivot, self.variant, self)
        low, high = clip_of(batch, step)
        ratio = log_ratio(batch).detach().exp()
        inside = (ratio > 1 - low / 2) & (ratio < 1 + high / 2)
        advantage = batch.need("advantage")
        return torch.where((h > 0) != inside, advantage * (1 + self.strength * h), advantage)


PARTS = (TokenPooledNorm, HAPOClip, HAPOWeight)
PRESETS = (
    Preset(
        name="hapo",
        title="HAPO",
        summary="Tokens are treated by how uncertain the policy was: uncertain ones may rise further before the clip "
        "stops them and get more advantage once they move, certain ones may fall further and get less. Forking tokens "
        "keep learning, so entropy falls more slowly. Sampling makes uncertain tokens a little hotter too, by the "
        "entropies of the step before.",
        when="Long answers with several minibatches per step. The authors also drop groups of equal rewards: add "
        "zero_variance_filter.",
        formula=r"h_t = \frac{\log H_t - Q_{0.8}}{\max |\log H - Q_{0.8}|}\text{ (each side by its own maximum)},\quad "
        + HAPOClip.formula,
        reference=paper(
            "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature", "2509.16591", 2025
        ),
        confidence="code",
        variants="In the released code the low-entropy side of h has the wrong sign, so no token is treated as low: "
        "variant = released in hapo_clip and hapo_weight, sign_mode = as_released in hapo_temperature. h spans the "
        "optimiser step here, a micro-batch there.",
        parts=[
            {"type": "hapo_temperature"},
            {"type": "token_pooled_norm"},
            {"type": "hapo_clip"},
            {"type": "hapo_weight"},
            {"type": "ppo_clip", "dual_clip": 10.0},
            TOKENS,
        ],
    ),
)
