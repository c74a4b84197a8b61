"""ERC: tokens whose entropy has left a band around what it was get no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import TokenMask
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

OFFSET = 1e-8  # nats, above and below the ratio's line: a sure token stays sure


class EntropyRatioClip(TokenMask):
    """Entropy ratio clip (ERC).

    A token keeps its gradient while the entropy there, over what it was at the start of the step, lies strictly
    between the bounds; otherwise it gets none and stays in the denominator. In the first update of a step nothing has
    moved and nothing is masked: it works with several minibatches per step, on top of any ratio clip.
    """

    title: ClassVar[str] = "Entropy ratio clip"
    paper: ClassVar[str] = "2512.05591"
    formula: ClassVar[str] = (
        r"g_t = 0 \text{ unless } b_{\text{lo}} < \frac{H_t + 10^{-8}}{H^{\text{old}}_t + 10^{-8}} < b_{\text{hi}}"
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "old_entropy"})
    type: Literal["entropy_ratio_clip"] = "entropy_ratio_clip"
    low: float = setting(0.8, help="Tokens whose entropy fell to this multiple or below are masked.", ge=0, lt=1)
    high: float = setting(1.2, help="Tokens whose entropy rose to this multiple or above are masked.", gt=1, le=1000)

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        now, then = (statistic(batch, name, self).detach() + OFFSET for name in ("entropy", "old_entropy"))
        ratio = now / then.clamp(min=OFFSET)
        return (ratio > self.low) & (ratio < self.high)

    def semantics(self) -> Literal["drop", "detach"]:
        return "detach"


REFERENCE = paper("Entropy Ratio Clipping as a Soft Global Constraint for Stable RL", "2512.05591", 2025)
VARIANTS = (
    "The paper reports that a fifth of the tokens is masked, which suggests a tighter band than 0.8 to 1.2, the only "
    "one in the authors' code."
)
PARTS = (EntropyRatioClip,)
PRESETS = (
    Preset(
        name="erc",
        title="ERC",
        summary="DAPO's clip bounds how far a sampled token's probability moves; ERC also bounds how far the entropy "
        "of its whole distribution moves within a step, up or down. Tokens beyond the band get no gradient, so entropy "
        "changes by little in each step.",
        when="Several minibatches per step: in the first update on fresh rollouts nothing is masked.",
        formula=EntropyRatioClip.formula,
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=[GROUP, {"type": "entropy_ratio_clip"}, CLIP_HIGHER | {"dual_clip": 10.0}, TOKENS],
    ),
    Preset(
        name="gppo-erc",
        title="ERC over the gradient-preserving clip",
        summary="ERC over a clip that bounds the gradient of tokens beyond it and never removes it (GPPO), so the "
        "entropy ratio alone decides which tokens stop learning.",
        when="As ERC, where clipped tokens should keep teaching.",
        formula=EntropyRatioClip.formula,
        reference=REFERENCE,
        confidence="code",
        variants=VARIANTS,
        parts=[
            GROUP,
            {"type": "entropy_ratio_clip"},
            {"type": "ce_gppo", "beta_low": 1.0, "beta_high": 1.0, "dual_clip": 10.0},
            TOKENS,
        ],
    ),
)
