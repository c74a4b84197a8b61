"""Clip_B and Clip_V: leave out wrong answers' tokens whose update would cost the most entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step
from trainer.objectives.entropy_change.first_order import at_start, baseline, discriminator
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, step_mean, step_std
from trainer.objectives.stages import TokenMask
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

NO_SPREAD = 1e-12  # below this standard deviation nothing stands out (the authors' guard)


class _EntropyClip(TokenMask):
    """A mask taken once from the step-start policy; masked tokens leave the denominator."""

    paper: ClassVar[str] = "2602.03392"
    domain: ClassVar[Domain] = "step"
    once: ClassVar[bool] = True

    def semantics(self) -> Literal["drop", "detach"]:
        return "drop"


class ClipB(_EntropyClip):
    """Clip_B.

    Drops tokens of wrong answers whose discriminator S = p (log p + H) lies more than `threshold` standard deviations
    below the mean over the step. Punishing those rare tokens sharpens the distribution and costs entropy.
    """

    title: ClassVar[str] = "Clip_B"
    formula: ClassVar[str] = r"\text{drop } t \text{ iff } A_t < 0 \text{ and } S_t - \bar S < -\mu\,\sigma(S)"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "old_entropy"})
    type: Literal["clip_b"] = "clip_b"
    threshold: float = setting(
        2.5, help="Standard deviations below the mean from which a token is dropped.", ge=0, le=1000
    )

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        counts, signal = counts_of(batch), discriminator(at_start(batch))
        mean, spread = step_mean(signal, counts), step_std(signal, counts, unbiased=False)
        step.metrics["objective/discriminator_mean"] = float(mean)
        step.metrics["objective/discriminator_std"] = float(spread)
        if float(spread) < NO_SPREAD:
            return torch.ones_like(counts)
        return (batch.need("advantage") >= 0) | (signal - mean >= -self.threshold * spread)


class ClipV(_EntropyClip):
    """Clip_V.

    Drops tokens of wrong answers whose exact first-order entropy change N - S is more than `threshold` standard
    deviations of the step, but of those with a negative advantage at most a small share of all tokens, the largest.
    """

    title: ClassVar[str] = "Clip_V"
    formula: ClassVar[str] = r"\text{drop } t \text{ iff } A_t \le 0 \text{ and } N_t - S_t > \mu\,\sigma(N - S)"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "old_entropy", "sum_p2", "sum_p2_logp"})
    type: Literal["clip_v"] = "clip_v"
    threshold: float = setting(8.5, help="Standard deviations from which a token is dropped.", ge=0, le=1000)
    most: float = setting(1e-4, help="Largest share of the step's tokens that is dropped.", gt=0, le=1)

    def keep(self, batch: TokenBatch, step: Step) -> Tensor:
        counts, advantage = counts_of(batch), batch.need("advantage")
        started = at_start(batch)
        signal = baseline(started) - discriminator(started)
        spread = step_std(signal, counts, unbiased=False)
        step.metrics["objective/entropy_change_std"] = float(spread)
        found = counts & (advantage <= 0) & (signal > self.threshold * spread)
        total = int(counts.sum())
        if int(found.sum()) <= self.most * total:
            return ~found
        punished = found & (advantage < 0)
        number = min(max(1, int(self.most * total)), int(punished.sum()))
        largest = signal.masked_fill(~punished, -torch.inf).topk(number).indices
        return ~((found & (advantage == 0)) | torch.zeros_like(found).index_fill(0, largest, True))


REFERENCE = paper("On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models", "2602.03392", 2026)
PARTS = (ClipB, ClipV)
PRESETS = (
    Preset(
        name="clip-b",
        title="Clip_B",
        summary="Wrong answers keep all their tokens but those rare ones whose punishment would cost entropy most, "
        "measured against the mean of the step; dropped tokens leave the denominator. Entropy falls more slowly.",
        when="Little to compute: log-prob and entropy are enough. The authors use 16 answers to a prompt and no KL.",
        formula=ClipB.formula,
        reference=REFERENCE,
        confidence="code",
        variants="The authors' code mixes the sampler's log-probs with the trainer's entropy; both are the trainer's "
        "here.",
        parts=[GROUP, {"type": "clip_b"}, CLIP, TOKENS],
    ),
    Preset(
        name="clip-v",
        title="Clip_V",
        summary="The exact first-order entropy change picks the few tokens of wrong answers whose update would move "
        "entropy most, at most one in ten thousand; they leave the denominator.",
        when="The published thresholds are for steps of 100,000 tokens and more; on small ones raise the share and "
        "lower the threshold.",
        formula=ClipV.formula,
        reference=REFERENCE,
        confidence="code",
        parts=[GROUP, {"type": "clip_v"}, CLIP, TOKENS],
    ),
)
