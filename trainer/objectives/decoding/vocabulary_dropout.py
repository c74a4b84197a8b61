"""Vocabulary dropout: a random part of the vocabulary is out of reach for a step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Decoding
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.modifiers import VocabularyDropout as Modifier
from trainer.rollout.randomness import seed_of

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec

PURPOSE = 0xD209  # so that other draws of the same seed and step are unrelated


class VocabularyDropout(Decoding):
    """Vocabulary dropout.

    Every token id stays with the same probability and cannot be drawn otherwise; end and other special tokens always
    stay. The mask is drawn anew for each step, or for each sample of it.
    """

    title: ClassVar[str] = "Vocabulary dropout"
    paper: ClassVar[str] = "2604.03472"
    formula: ClassVar[str] = r"b_t(v) \propto \pi_t(v)\, m_v,\quad m_v \sim \operatorname{Bernoulli}(q)"
    leaves_out: ClassVar[bool] = True
    type: Literal["vocabulary_dropout"] = "vocabulary_dropout"
    keep: float = setting(0.9, help="q: probability that a token stays.", gt=0, le=1, knob="vocabulary_keep")
    anew: Literal["step", "sample"] = setting(
        "step", help="One mask for all completions of a step, or one for each place in the group."
    )

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        seed = seed_of(step.seed, PURPOSE, step.step, sample if self.anew == "sample" else 0)
        modifier = Modifier(step.knobs["vocabulary_keep"], seed, step.special_ids)
        return replace(given, modifiers=(*given.modifiers, modifier))


PARTS = (VocabularyDropout,)
PRESETS = (
    Preset(
        name="vocabulary-dropout",
        title="Vocabulary dropout",
        summary="GRPO on completions drawn without a random part of the vocabulary, which changes from step to step: "
        "the policy cannot always fall back on the same words.",
        when="Completions become ever more alike.",
        formula=VocabularyDropout.formula,
        reference=paper("Vocabulary Dropout for Curriculum Diversity in LLM Co-Evolution", "2604.03472", 2026),
        confidence="reconstructed",
        assumed="The share that stays, how often the mask changes, and that it bends sampling alone: the paper masks "
        "the proposer of a self-play pair while it generates and in the loss too; here the policy that is trained "
        "generates under the mask, and log-probs are those of the whole policy.",
        parts=[{"type": "vocabulary_dropout"}, GROUP, CLIP, TOKENS],
    ),
)
