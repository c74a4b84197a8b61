"""SIREN: hold the nucleus entropy of each answer's peaks where it was when the run began."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_quantile, counts_of
from trainer.objectives.stages import Controller, Regulariser
from trainer.objectives.stock import CLIP, GROUP_NO_STD
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

STARTED = "objective/peak_entropy_start"


class PeakEntropy(Regulariser):
    """Anchored peak entropy (SIREN).

    Entropy is taken over the nucleus alone, so the vocabulary's tail cannot be inflated. Of each completion the tokens
    above its quantile count; the mean over completions of their means is pulled to the anchor by a square.
    """

    title: ClassVar[str] = "Anchored peak entropy"
    paper: ClassVar[str] = "2509.25133"
    formula: ClassVar[str] = (
        r"L = L_{\text{policy}} + c\,(\bar H - H_{\text{anchor}})^2,\quad "
        r"\bar H = \operatorname{mean}_i \operatorname{mean}_{t:\, H^{p}_t > q_{0.8}(H^{p}_i)} H^{p}_t"
    )
    domain: ClassVar[Domain] = "history"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"nucleus_entropy"})
    requires: ClassVar[frozenset[str]] = frozenset({"peak_anchor"})
    type: Literal["peak_entropy"] = "peak_entropy"
    coefficient: float = setting(
        5e-3, help="Price of the squared distance to the anchor.", ge=0, le=10, knob="peak_coefficient"
    )
    top_p: float = setting(0.8, help="Probability mass of the nucleus.", gt=0, le=1)
    crossing: bool = setting(
        False,
        help="Let the token that reaches the mass belong to the nucleus, as usual; the authors' code leaves it out.",
        advanced=True,
    )
    quantile: float = setting(0.8, help="Tokens of a completion above this quantile are its peaks.", ge=0, lt=1)
    anchor: float = setting(
        0.0,
        help="Nucleus entropy of the peaks to hold; 0 takes that of the first update.",
        unit="nats",
        ge=0,
        le=20,
        knob="peak_anchor",
    )

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"top_p": self.top_p, "nucleus_crossing": self.crossing}

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        level = self._level(batch)
        if level is None:
            return batch.logprob.new_zeros(())
        step.metrics["objective/peak_entropy"] = float(level.detach())
        if step.minibatch == 0:
            step.metrics[STARTED] = float(level.detach())
        anchor = step.knobs["peak_anchor"]
        if anchor <= 0:  # the first update: the policy is its own anchor
            return batch.logprob.new_zeros(())
        return step.knobs["peak_coefficient"] * (level - anchor).square()

    def _level(self, batch: TokenBatch) -> Tensor | None:
        """Return the mean over completions of their peaks' nucleus entropy, []; None without a peak."""
        entropy = statistic(batch, "nucleus_entropy", self)
        threshold = completion_quantile(entropy.detach(), batch, self.quantile)
        peak = counts_of(batch) & (entropy.detach() > batch.per_token(threshold))
        number = batch.per_sequence_sum(peak.to(entropy.dtype))
        if not bool(peak.any()):
            return None
        mean = batch.per_sequence_sum(torch.where(peak, entropy, 0)) / number.clamp(min=1)
        return mean.sum() / (number > 0).sum()


class PeakAnchor(Controller):
    """Self-anchoring (SIREN).

    After the first update the anchor becomes what the initial policy's peaks had. An anchor that is set, by hand or
    earlier, stays; 0 takes a new one.
    """

    title: ClassVar[str] = "Self-anchoring"
    paper: ClassVar[str] = "2509.25133"
    formula: ClassVar[str] = r"H_{\text{anchor}} = \bar H_{k=1}"
    domain: ClassVar[Domain] = "history"
    moves: ClassVar[frozenset[str]] = frozenset({"peak_anchor"})
    requires: ClassVar[frozenset[str]] = frozenset({"peak_entropy"})
    type: Literal["peak_anchor"] = "peak_anchor"

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        measured = seen.metrics.get(STARTED, 0.0)
        if knobs["peak_anchor"] > 0 or not math.isfinite(measured) or measured <= 0:
            return state, {}
        return state, {"peak_anchor": measured}


PARTS = (PeakEntropy, PeakAnchor)
PRESETS = (
    Preset(
        name="siren",
        title="SIREN",
        summary="Among each completion's most uncertain tokens, the entropy of the plausible choices alone is pulled "
        "back to what it was when the run began. Forks stay open, and the tail of the vocabulary gains nothing from "
        "it.",
        when="Where a plain entropy bonus drives the policy to noise.",
        formula=PeakEntropy.formula,
        reference=paper("Rethinking Entropy Regularization in Large Reasoning Models", "2509.25133", 2025),
        confidence="code",
        variants="The authors' code leaves the token that reaches the mass out of the nucleus (set crossing for the "
        "usual one) and looks at the 10,000 likeliest tokens at most; its square is taken in each micro-batch, here "
        "once in the optimiser step. Their script asks for a clip of 0.28, which their configuration overrides by 0.2.",
        parts=[GROUP_NO_STD, CLIP, {"type": "peak_entropy"}, {"type": "const_norm"}, {"type": "peak_anchor"}],
    ),
)
