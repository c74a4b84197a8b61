"""CES: entropy of forking tokens is punished where the answer was right and rewarded where it was wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, quantile
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Ces(TokenShaper):
    """Conditional entropy shaping (CES).

    At the tokens of highest entropy of the step the advantage is moved: down in right responses, up in wrong ones, by
    at most half its size, so the sign stays. Responses without an advantage are left alone.
    """

    title: ClassVar[str] = "Conditional entropy shaping (CES)"
    paper: ClassVar[str] = "2605.19358"
    formula: ClassVar[str] = (
        r"A_{it} \leftarrow A_{it} \mp \min\bigl(c\,h_{it},\ |A_{it}|/2\bigr)\ \text{(right/wrong)},\quad "
        r"h_{it} = \min(H_{it}/H_q,\,1)\ \text{at } H_{it} \ge H_{q}"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy", "correct"})
    type: Literal["ces"] = "ces"
    strength: float = setting(0.1, help="Largest change of the advantage.", ge=0, le=10)
    share: float = setting(0.2, help="Share of the step's tokens that count as forks.", gt=0, le=1)
    full: float = setting(
        0.8,
        help="Quantile of entropy from which the whole change is due; at 1 - share it is due at every fork.",
        ge=0,
        le=1,
        advanced=True,
    )

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy, advantage, counts = statistic(batch, "old_entropy", self), batch.need("advantage"), counts_of(batch)
        right = batch.per_token(statistic(batch, "correct", self)) > 0
        if not bool(counts.any()):
            return advantage
        fork, full = (quantile(entropy[counts], q) for q in (1 - self.share, self.full))
        relative = (entropy / full.clamp(min=1e-12)).clamp(0, 1)
        change = torch.minimum(self.strength * relative, advantage.abs() / 2)
        change = torch.where(counts & (entropy >= fork), change, torch.zeros_like(change))
        return torch.where(right, advantage - change, advantage + change)


PARTS = (Ces,)
PRESETS = (
    Preset(
        name="ces",
        title="CES",
        summary="At the most uncertain fifth of the tokens, right responses are reinforced a little less and wrong "
        "ones blamed a little less. Every fork moves more slowly, so neither success nor failure closes it at once.",
        when="Forks close before wrong answers have become rare.",
        formula=Ces.formula,
        reference=paper(
            "Taming the Thinker: Conditional Entropy Shaping for Adaptive LLM Reasoning", "2605.19358", 2026
        ),
        confidence="reconstructed",
        assumed="Only the abstract was at hand: the fifth of the tokens, the size and the bound of the change are "
        "ours.",
        parts=[GROUP, {"type": "ces"}, CLIP_HIGHER, TOKENS],
    ),
)
