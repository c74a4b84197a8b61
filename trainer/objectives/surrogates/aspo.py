"""ASPO: rewarded tokens are weighed by the inverse of their ratio, so that rare ones are lifted most."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, log_ratio, report_clip, unit
from trainer.objectives.reductions import completion_quantile
from trainer.objectives.stages import ClipRange
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class ASPO(RatioSurrogate):
    """Asymmetric importance weight (ASPO).

    A rewarded token is weighed by 1 / r instead of r: what has become likely since the step began gets less, what is
    still rare gets more. A punished token is weighed by r. Beyond the clip there is no gradient; a weight above its cap
    is held at the cap and keeps its gradient. Compare gradients with other methods, not losses.
    """

    title: ClassVar[str] = "Asymmetric importance weight"
    paper: ClassVar[str] = "2510.06062"
    formula: ClassVar[str] = (
        r"-\frac{\partial x_t}{\partial \log\pi} = A_t \begin{cases}"
        r"\min(1/r_t, c_+)\,[r_t \le 1+\epsilon_+] & A_t > 0 \\"
        r"\min(r_t, c_-)\,[r_t \ge 1-\epsilon_-] & A_t < 0\end{cases}"
    )
    blind: ClassVar[bool] = True
    type: Literal["aspo"] = "aspo"
    clip_low: float = setting(
        0.2, help="A punished token further below 1 than this gets no gradient.", ge=0, le=1, knob="clip_low"
    )
    clip_high: float = setting(
        0.2, help="A rewarded token further above 1 than this gets no gradient.", ge=0, le=100, knob="clip_high"
    )
    cap_positive: float = setting(3.0, help="Largest weight of a rewarded token.", gt=0, le=1000)
    cap_negative: float = setting(3.0, help="Largest weight of a punished token.", gt=0, le=1000)

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, ratio = batch.need("advantage"), log_ratio(batch).detach().exp()
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        rewarded = advantage > 0
        weight = torch.where(rewarded, 1 / ratio, ratio)
        cap = torch.full_like(weight, self.cap_negative).masked_fill(rewarded, self.cap_positive)
        open_ = torch.where(rewarded, ratio <= high, ratio >= low)
        report_clip(batch, step, ratio, low, high)
        # at the cap the authors' value is that of -A c log-prob; everywhere the gradient is -A weight
        kept = torch.where(weight > cap, cap * batch.logprob, weight * unit(batch))
        stopped = torch.where(rewarded, 1 / high, low)  # value at the clip's end, without gradient
        return self.corrected(-advantage * torch.where(open_, kept, stopped), batch, step)


class EntropySplitClip(ClipRange):
    """Wider clip for high-entropy tokens (Archer).

    Tokens whose entropy is above the quantile of their completion get clip ends of their own; the others keep the
    surrogate's.
    """

    title: ClassVar[str] = "Entropy-split clip"
    paper: ClassVar[str] = "2507.15778; 2510.06062"
    formula: ClassVar[str] = r"\epsilon_t = \epsilon^{\mathrm{high}}\ \text{if}\ H_t > Q_q(H_i),\ \text{else}\ \epsilon"
    domain: ClassVar[Domain] = "completion"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["entropy_split_clip"] = "entropy_split_clip"
    quantile: float = setting(0.8, help="Quantile of a completion's entropy above which a token is high.", ge=0, le=1)
    low: float = setting(0.4, help="The ratio of a high-entropy token may fall this far below 1.", ge=0, le=1)
    high: float = setting(0.4, help="The ratio of a high-entropy token may rise this far above 1.", ge=0, le=100)

    def clip(self, batch: TokenBatch, step: Step, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        entropy = statistic(batch, "entropy", self).detach()
        uncertain = entropy > batch.per_token(completion_quantile(entropy, batch, self.quantile))
        return low.masked_fill(uncertain, self.low), high.masked_fill(uncertain, self.high)


PARTS = (ASPO, EntropySplitClip)
PRESETS = (
    Preset(
        name="aspo",
        title="ASPO",
        summary="With outcome rewards the usual ratio gives rewarded tokens that are already likely the larger weight. "
        "ASPO inverts it for positive advantages: rare rewarded tokens are lifted most, likely ones least, so entropy "
        "falls more slowly.",
        when="Several minibatches per step; on-policy every weight is 1 and it equals GRPO.",
        formula=ASPO.formula,
        reference=paper("ASPO: Asymmetric Importance Sampling Policy Optimization", "2510.06062", 2025),
        confidence="code",
        variants="The paper has one clip of 0.2 (this preset). The released code clips the fifth of each completion's "
        "tokens with the highest entropy at 0.4: add entropy_split_clip.",
        parts=[GROUP, {"type": "aspo"}, TOKENS],
    ),
)
