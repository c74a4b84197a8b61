"""COPO: groups that agree learn from how they compare with other prompts, groups that differ from within."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, ObjectivePart, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import group_mean, group_size, groups_of, step_mean, step_std, valid_of
from trainer.objectives.stages import Blend
from trainer.objectives.stock import CLIP, GROUP, SEQUENCES
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

Mode = Literal["soft", "forced", "zero", "soft_forced", "soft_zero", "global", "local"]


def answer_entropy(batch: TokenBatch, part: ObjectivePart) -> Tensor:
    """Return the entropy of the answers in each completion's group, [S], in bits; no answer is an answer of its own."""
    answer, valid = statistic(batch, "answer", part).to(batch.reward.dtype), valid_of(batch)
    dense, _ = groups_of(batch)
    _, kind = torch.unique(torch.stack([dense.to(answer.dtype), answer], 1), dim=0, return_inverse=True)
    number = answer.new_zeros(batch.sequences).index_add(0, kind, valid.to(answer.dtype))[kind]
    share = number / group_size(batch).clamp(min=1)
    return group_mean(-(share + 1e-8).log2(), batch)


def prompt_advantage(batch: TokenBatch, entropy: Tensor, *, consistent: bool) -> Tensor:
    """Return (g - mean) / (std + 1e-6) of each prompt's mean reward g among the prompts, [S], unbiased; 0 for one.

    `consistent`: g is lowered by the answer entropy, down to 1/n of itself for n different answers.
    """
    size, reward = group_size(batch), torch.where(valid_of(batch), batch.reward, torch.zeros_like(batch.reward))
    value = group_mean(reward, batch)
    if consistent:
        rate = (1 - 1 / size.clamp(min=1)) / size.clamp(min=2).log2()
        value = value * (1 - rate * entropy.to(value.dtype))
    dense, count = groups_of(batch)
    prompts = value.new_zeros(count).index_put((dense,), value)
    counts = value.new_zeros(count).index_put((dense,), size) > 0
    centred = prompts - step_mean(prompts, counts)
    scaled = centred / (step_std(prompts, counts, unbiased=True) + 1e-6)
    spread = prompts[counts].max() > prompts[counts].min() if bool(counts.any()) else False
    return torch.where(valid_of(batch) & spread, scaled[dense], torch.zeros_like(value))  # rounding is no signal


class COPO(Blend):
    """Local and global advantage (COPO).

    Loss (1 - w) L(global) + w L(local): local is the advantage within the group, global that of the prompt's mean
    reward among the prompts of the update. w by mode: soft, a sigmoid of the answers' entropy in bits; forced, 1 where
    the completion has a local advantage; zero, 1 where its reward is not 0; products of soft with these; or one alone.
    Minibatches of one prompt have no global advantage.
    """

    title: ClassVar[str] = "Local and global advantage"
    paper: ClassVar[str] = "2508.04138"
    formula: ClassVar[str] = (
        r"x_t = (1-w_i)\,L(A^{G}_i) + w_i\,L(A_i),\quad w_i = \sigma\bigl(k (\mathrm{SE}_p - b)\bigr)\,[r_i \ne 0],"
        r"\quad A^{G}_i = \frac{\bar r_p - \mu}{\sigma}\ \text{over prompts}"
    )
    domain: ClassVar[Domain] = "step"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"answer"})
    type: Literal["copo"] = "copo"
    mode: Mode = setting("soft_zero", help="What the weight of the local loss depends on.")
    steepness: float = setting(
        5.0, help="k of the soft weight.", ge=0, le=100, show_if={"mode": ["soft", "soft_forced", "soft_zero"]}
    )
    middle: float = setting(
        1.0,
        help="Entropy of the answers at which the soft weight is a half.",
        unit="bits",
        ge=0,
        le=20,
        show_if={"mode": ["soft", "soft_forced", "soft_zero"]},
    )
    consistency: bool = setting(
        False, help="Lower a prompt's mean reward by the entropy of its answers before prompts are compared."
    )

    def blend(self, batch: TokenBatch, step: Step, loss: Callable[[TokenBatch], Tensor]) -> Tensor:
        local = loss(batch)
        if self.mode == "local":
            return local
        with torch.no_grad():
            entropy = answer_entropy(batch, self)
            advantage = prompt_advantage(batch, entropy, consistent=self.consistency)
            weight = batch.per_token(self.local_weight(batch, entropy)).to(local.dtype)
            advantage = batch.per_token(advantage).to(local.dtype)
        step.metrics["objective/copo_local_share"] = float(weight.mean()) if weight.numel() else 0.0
        return (1 - weight) * loss(batch.replace(advantage=advantage)) + weight * local

    def local_weight(self, batch: TokenBatch, entropy: Tensor) -> Tensor:
        """Return the weight of each completion's local loss, [S] in [0, 1]."""
        if self.mode == "global":
            return torch.zeros_like(entropy)
        soft = torch.sigmoid(self.steepness * (entropy - self.middle)) if "soft" in self.mode else 1.0
        if "forced" in self.mode:
            return soft * (batch.per_sequence_sum(batch.need("advantage").abs()) > 0)
        return soft * (batch.reward != 0) if "zero" in self.mode else soft * torch.ones_like(entropy)


PARTS = (COPO,)
PRESETS = (
    Preset(
        name="copo",
        title="COPO",
        summary="Where all completions of a prompt agree, GRPO has nothing to compare. COPO then compares prompts: a "
        "group that is right together is rewarded against the others, one that is wrong together punished. Groups "
        "whose answers differ learn from within. Consistent groups sharpen, so entropy falls; punished agreement "
        "raises it.",
        when="Many groups of equal rewards, and updates over several prompts.",
        formula=COPO.formula,
        reference=paper("COPO: Consistency-Aware Policy Optimization", "2508.04138", 2025),
        confidence="code",
        variants="In the authors' code the weights by reward become 0 when advantages are not divided by the std, "
        "because the reward is then not stored; here they are independent of it.",
        parts=[GROUP, {**CLIP, "dual_clip": 3.0}, {"type": "copo"}, SEQUENCES],
    ),
)
