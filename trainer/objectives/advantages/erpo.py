"""ERPO: critical tokens of a stretch of the response get a larger share of the response's advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, groups_of, quantile
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class Erpo(TokenShaper):
    """Entropy-regulated tokens (ERPO).

    A soft gate opens for tokens above an entropy quantile of the step. The gate is standardised among the tokens of
    the same group that stand at the same share of their response, and moves the advantage by a bounded factor, so the
    sign of the outcome stays.
    """

    title: ClassVar[str] = "Entropy-regulated tokens (ERPO)"
    paper: ClassVar[str] = "2603.28204"
    formula: ClassVar[str] = (
        r"A_{it} = A_i\,\operatorname{clip}\bigl(1 + \eta\,u_{it},\,1-\delta,\,1+\delta\bigr),\quad "
        r"u = \operatorname{standardise}_{g,\,b(t)}\Bigl(1 + \lambda\,\sigma\bigl(\tfrac{H_{it}-\tau}{s}\bigr)\Bigr)"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["erpo"] = "erpo"
    gain: float = setting(1.0, help="Height of the gate.", ge=0, le=100)
    level: float = setting(0.8, help="Quantile of entropy at which the gate is half open.", ge=0, le=1)
    width: float = setting(0.5, help="Entropy over which the gate opens.", unit="nats", gt=0, le=20)
    buckets: int = setting(8, help="Stretches of a response inside which tokens are compared.", ge=1, le=1000)
    eta: float = setting(0.2, help="Change of the advantage at one std of the gate.", ge=0, le=10)
    bound: float = setting(0.5, help="Largest change of the advantage, as a share of it.", ge=0, lt=1)

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy, advantage, counts = statistic(batch, "old_entropy", self), batch.need("advantage"), counts_of(batch)
        if not bool(counts.any()):
            return advantage
        level = quantile(entropy[counts], self.level)
        gate = 1 + self.gain * torch.sigmoid((entropy - level) / self.width)
        factor = 1 + self.eta * self._standardised(gate, batch, counts)
        return advantage * factor.clamp(1 - self.bound, 1 + self.bound)

    def _standardised(self, values: Tensor, batch: TokenBatch, counts: Tensor) -> Tensor:
        """Return the values centred and scaled among the tokens of their group and stretch, [N]; 0 where alone."""
        dense, groups = groups_of(batch)
        stretch = (self.buckets * batch.position // batch.per_token(batch.length).clamp(min=1)).clamp(
            0, self.buckets - 1
        )
        key = batch.per_token(dense) * self.buckets + stretch
        weight = counts.to(values.dtype)

        def pooled(numbers: Tensor) -> Tensor:
            return values.new_zeros(groups * self.buckets).index_add(0, key, numbers * weight)[key]

        number = pooled(torch.ones_like(values))
        centred = (values - pooled(values) / number.clamp(min=1)) * weight
        std = (pooled(centred.square()) / (number - 1).clamp(min=1)).sqrt()
        return torch.where(number > 1, centred / (std + 1e-6), torch.zeros_like(centred))


PARTS = (Erpo,)
PRESETS = (
    Preset(
        name="erpo",
        title="ERPO",
        summary="Inside each stretch of the responses, tokens above an entropy level get up to half more of the "
        "advantage and calm ones less. Decisions move, routine rests; entropy falls where it was high and right.",
        when="Long chains in which a few decisions matter.",
        formula=Erpo.formula,
        reference=paper(
            "ERPO: Token-Level Entropy-Regulated Policy Optimization for Large Reasoning Models", "2603.28204", 2026
        ),
        confidence="reconstructed",
        assumed="Only the abstract was at hand: the gate's form, its level, width and height, eight stretches, the "
        "standardisation inside them and the bounded factor are ours.",
        parts=[GROUP, {"type": "erpo"}, CLIP, TOKENS],
    ),
)
