"""GSPO: one importance ratio for the whole completion, the geometric mean of its tokens' ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Domain, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import RatioSurrogate, clip_of, clipped, log_ratio, report_clip, unit
from trainer.objectives.reductions import completion_mean
from trainer.objectives.stock import GROUP, SEQUENCES
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

LOG_LIMIT = 10.0  # nats; the reference bounds the mean log-ratio here, beyond it a completion has no gradient


class GSPO(RatioSurrogate):
    """Sequence ratio (GSPO).

    s = exp(mean over the completion's tokens of logprob - old_logprob). PPO's clip is put to s, so a completion keeps
    all of its tokens or loses them together; each token's gradient is weighed by s.
    """

    title: ClassVar[str] = "Sequence ratio"
    paper: ClassVar[str] = "2507.18071"
    formula: ClassVar[str] = (
        r"s_i = \Bigl(\tfrac{\pi(o_i)}{\pi_{\mathrm{old}}(o_i)}\Bigr)^{1/|o_i|},\quad "
        r" x_t = \max\bigl(-A_t s_i, -A_t \operatorname{clip}(s_i, 1-\epsilon_-, 1+\epsilon_+)\bigr)"
    )
    domain: ClassVar[Domain] = "completion"
    blind: ClassVar[bool] = True
    type: Literal["gspo"] = "gspo"
    clip_low: float = setting(3e-4, help="The sequence ratio may fall this far below 1.", ge=0, le=1, knob="clip_low")
    clip_high: float = setting(
        4e-4, help="The sequence ratio may rise this far above 1.", ge=0, le=100, knob="clip_high"
    )

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        mean = batch.per_token(completion_mean(log_ratio(batch).detach(), batch))
        ratio = mean.exp() * unit(batch)
        ratio = ratio.clamp(max=mean.new_tensor(LOG_LIMIT).exp())
        below, above = clip_of(batch, step)
        low, high = 1 - below, 1 + above
        report_clip(batch, step, ratio, low, high)
        return self.corrected(clipped(batch.need("advantage"), ratio, low, high), batch, step)


PARTS = (GSPO,)
PRESETS = (
    Preset(
        name="gspo",
        title="GSPO",
        summary="Ratio and clip belong to the completion, as the reward does: the geometric mean of its token ratios. "
        "Noise of single tokens cancels; rare tokens are no longer clipped one by one. Nothing holds entropy.",
        when="Mixture-of-experts models and long answers, several minibatches per step. The clip of 0.0003 is for long "
        "completions; with tens of tokens a mean log-ratio scatters more and needs a clip nearer 0.01.",
        formula=GSPO.formula,
        reference=paper("Group Sequence Policy Optimization", "2507.18071", 2025),
        confidence="code",
        parts=[GROUP, {"type": "gspo"}, SEQUENCES],
    ),
)
