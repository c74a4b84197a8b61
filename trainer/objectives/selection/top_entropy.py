"""The 80/20 rule: only the tokens where the policy hesitates most keep their gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, demand
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_quantile, quantile
from trainer.objectives.stages import TokenMask
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class TopEntropy(TokenMask):
    """High-entropy tokens only (80/20).

    Tokens whose entropy reaches the quantile of the step keep their gradient. In the paper and in TRL the others stay
    in the denominator (detach); in two other codes they leave it (drop), a five times larger step on the same data.
    """

    title: ClassVar[str] = "High-entropy tokens only"
    paper: ClassVar[str] = "2506.01939"
    formula: ClassVar[str] = r"\text{keep } t \text{ iff } H_t \ge q_{1-\rho}(H),\quad \rho = 0.2"
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy"})
    type: Literal["top_entropy"] = "top_entropy"
    share: float = setting(0.2, help="Share of the tokens that keep their gradient.", gt=0, le=1)
    removal: Literal["detach", "drop"] = setting(
        "detach", help="What happens to the rest: no gradient, or out of the denominator too."
    )
    select: Literal["quantile", "count"] = setting(
        "quantile",
        help="Keep tokens at or above the interpolated quantile (ties all stay), or exactly the rounded-down count.",
        advanced=True,
    )
    scope: Literal["step", "completion"] = setting(
        "step", help="Over which tokens the quantile is taken.", advanced=True, show_if={"select": "quantile"}
    )
    strict: bool = setting(
        False, help="Keep only tokens above the quantile, not at it.", advanced=True, show_if={"select": "quantile"}
    )

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.mask is not None
        entropy, counts = demand(batch.entropy, "entropy", self).detach(), batch.mask > 0
        if not bool(counts.any()):
            return counts
        if self.select == "count":
            number = max(1, int(self.share * int(counts.sum())))
            chosen = entropy.masked_fill(~counts, -torch.inf).topk(number).indices
            return torch.zeros_like(counts).index_fill(0, chosen, True)
        threshold = self._threshold(entropy, counts, batch)
        return counts & ((entropy > threshold) if self.strict else (entropy >= threshold))

    def semantics(self) -> Literal["drop", "detach"]:
        return self.removal

    def _threshold(self, entropy: Tensor, counts: Tensor, batch: TokenBatch) -> Tensor:
        """Return the threshold of each token, [N] or []."""
        if self.scope == "step":
            return quantile(entropy[counts], 1 - self.share)
        return batch.per_token(completion_quantile(entropy, batch, 1 - self.share))


REFERENCE = paper(
    "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective RL for LLM Reasoning", "2506.01939", 2025
)
VARIANTS = (
    "Three codes, three denominators: TRL and the paper keep all tokens in it (top-entropy-mask), Lp-Reg's and SIREN's "
    "baselines only the kept ones (top-entropy-count, top-entropy-by-completion), a five times larger step on the same "
    "data."
)
PARTS = (TopEntropy,)
PRESETS = (
    Preset(
        name="top-entropy-mask",
        title="80/20: high-entropy tokens only",
        summary="Only the fifth of the tokens where the policy hesitates most is trained on: the forks decide "
        "where the reasoning goes, the rest follows.",
        when="Reasoning with long answers; entropy tends to stay higher than under DAPO.",
        formula=TopEntropy.formula,
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=[GROUP, {"type": "top_entropy"}, CLIP_HIGHER, TOKENS],
    ),
    Preset(
        name="top-entropy-count",
        title="80/20 by count, kept tokens in the denominator",
        summary="The 80/20 rule as the baseline of Lp-Reg's code has it: exactly a fifth of the step's tokens, "
        "rounded down, and the loss is their mean. Steps are five times larger than with top-entropy-mask.",
        when="To compare with numbers from that code; lower the learning rate otherwise.",
        formula=TopEntropy.formula,
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=[
            GROUP,
            {"type": "top_entropy", "select": "count", "removal": "drop"},
            CLIP_HIGHER | {"dual_clip": 0.0},
            TOKENS,
        ],
    ),
    Preset(
        name="top-entropy-by-completion",
        title="80/20 within each completion",
        summary="The 80/20 rule as the baseline of SIREN's code has it: of each completion the tokens above its own "
        "80 % quantile, and the loss is their mean. Calm completions keep their forks too.",
        when="Completions whose entropy differs widely.",
        formula=r"\text{keep } t \text{ iff } H_t > q_{1-\rho}(H_i),\quad \rho = 0.2",
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=[
            GROUP,
            {"type": "top_entropy", "scope": "completion", "strict": True, "removal": "drop"},
            CLIP_HIGHER,
            TOKENS,
        ],
    ),
)
