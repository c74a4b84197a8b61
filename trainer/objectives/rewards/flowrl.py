"""FlowRL: match the reward's distribution instead of maximising the reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.ratio import LOG_RATIO_LIMIT
from trainer.objectives.reductions import completion_mean, completion_sum, group_mean
from trainer.objectives.stages import Surrogate
from trainer.objectives.stock import GROUP, SEQUENCES
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

FORMULA = r"""L = \frac{1}{B} \sum_i \operatorname{sg}(w_i) \Big( \log Z(x)
 + \tfrac{1}{|o_i|} \log \pi(o_i) - \beta A_i - \tfrac{1}{|o_i|} \log \pi_{\text{ref}}(o_i) \Big)^2"""


class FlowRL(Surrogate):
    """Flow residual (FlowRL).

    For each completion the squared difference between its mean log-prob plus log Z and beta * advantage plus the
    reference's mean log-prob, times a detached importance weight of the whole completion. Described: the weight is
    clipped to 1 - clip and 1 + clip. Released: it is not. log Z is a learned number of the prompt, or (our addition,
    without a further network) the value at which the group's residuals have mean zero.
    """

    title: ClassVar[str] = "Flow residual (FlowRL)"
    paper: ClassVar[str] = "2509.15207"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "completion"
    requires: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_mean"})
    type: Literal["flowrl"] = "flowrl"
    variant: Literal["described", "released"] = setting(
        "described", help="As the paper describes it, or as the released code does it."
    )
    beta: float = setting(15.0, help="How sharply the advantage counts.", ge=0, le=1000)
    clip: float = setting(
        0.2, help="The importance weight stays this close to 1.", ge=0, le=1, show_if={"variant": "described"}
    )
    partition: Literal["learned", "group"] = setting(
        "learned", help="Where log Z comes from: a network on the prompt, or the group's mean residual."
    )

    def reads(self) -> frozenset[Statistic]:
        known = frozenset({"old_logprob", "ref_logprob"})
        return known | {"log_partition"} if self.partition == "learned" else known

    def loss(self, batch: TokenBatch, step: Step) -> Tensor:
        residual = self._without_partition(batch)
        if self.partition == "learned":
            residual = residual + statistic(batch, "log_partition", self)
        else:
            residual = residual - group_mean(residual.detach(), batch)
        squared = self._weight(batch) * residual.square()
        step.metrics["objective/flow_residual"] = float(residual.detach().abs().mean()) if batch.sequences else 0.0
        return batch.per_token(squared)

    def _without_partition(self, batch: TokenBatch) -> Tensor:
        """Return mean log-prob - beta * advantage - mean reference log-prob, [S]."""
        advantage = completion_mean(batch.need("advantage"), batch)
        reference = completion_mean(statistic(batch, "ref_logprob", self), batch)
        return completion_mean(batch.logprob, batch) - self.beta * advantage - reference

    def _weight(self, batch: TokenBatch) -> Tensor:
        """Return the importance weight of each completion, [S], detached."""
        now = batch.logprob.detach()
        moved = now - (now if batch.old_logprob is None else batch.old_logprob)
        weight = completion_sum(moved, batch).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        return weight.clamp(1 - self.clip, 1 + self.clip) if self.variant == "described" else weight


PARTS = (FlowRL,)
PRESETS = (
    Preset(
        name="flowrl",
        title="FlowRL",
        summary="Instead of making the best completion ever likelier, the policy is led to give each completion a "
        "probability that grows with its reward. Several good answers stay alive, so entropy is kept.",
        when='Diversity of right answers matters. log Z needs a network on the prompt; partition = "group" does '
        "without.",
        formula=FORMULA,
        reference=paper("FlowRL: Matching Reward Distributions for LLM Reasoning", "2509.15207", 2025),
        confidence="code",
        variants="Released: the clipped importance weight is computed and not used.",
        parts=[GROUP, {"type": "flowrl"}, SEQUENCES],
    ),
)
