"""CUTS: uniform choice among the plausible tokens, for all or part of a group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Decoding
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.modifiers import UniformChoice

if TYPE_CHECKING:
    from trainer.rollout.base import SamplerSpec

REFERENCE = paper("Too Correct to Learn", "2604.18493", 2026)
VARIANTS = (
    "There is no official code. Probabilities are tested at the sampling temperature, 1 in the paper. What was "
    "drawn is no sample of the policy, and nothing corrects for that, as in the paper: the ratio compares the policy "
    "with itself at the start of the step. Weights towards the policy would undo the exploration, so the engine "
    "correction is refused."
)


class CUTS(Decoding):
    """Uniform choice among plausible tokens (CUTS).

    After a warm-up of a few tokens, each token is drawn evenly from those among the k likeliest that have at least a
    given probability; where none has, from all k. `share` of each group is drawn so, the rest plainly; advantages are
    taken over the whole group.
    """

    title: ClassVar[str] = "Uniform choice among plausible tokens"
    paper: ClassVar[str] = "2604.18493"
    formula: ClassVar[str] = (
        r"b_t = \operatorname{Uniform}(S_t),\quad S_t = \{v \in \operatorname{top}_K : \pi_t(v) \ge \delta\},"
        r"\quad t \ge t_{\text{warm}}"
    )
    leaves_out: ClassVar[bool] = True
    type: Literal["cuts"] = "cuts"
    k: int = setting(5, help="How many of the likeliest tokens may come.", unit="tokens", ge=1, le=1024)
    floor: float = setting(0.03, help="delta: least probability of a token that may come.", ge=0, le=1)
    warm_up: int = setting(5, help="Tokens at the start of a completion that are drawn plainly.", unit="tokens", ge=0)
    share: float = setting(1.0, help="Share of each group that is drawn so; the rest is drawn plainly.", ge=0, le=1)

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        if sample < samples - round(self.share * samples):
            return given
        modifier = UniformChoice(self.k, self.floor, self.warm_up)
        return replace(given, modifiers=(*given.modifiers, modifier))


PARTS = (CUTS,)
PRESETS = (
    Preset(
        name="cuts",
        title="CUTS",
        summary="GRPO on completions whose tokens were drawn evenly among the plausible ones: what the policy already "
        "prefers comes no more often than its alternatives.",
        when="A policy so sure of itself that groups rarely differ in reward.",
        formula=CUTS.formula,
        reference=REFERENCE,
        confidence="secondary",
        variants=VARIANTS,
        parts=[{"type": "cuts"}, GROUP, CLIP, TOKENS],
    ),
    Preset(
        name="mixed-cuts",
        title="Mixed CUTS",
        summary="Half of each group is drawn plainly, half evenly among plausible tokens; both are compared with each "
        "other in one group.",
        when="As CUTS, with the policy's own completions to hold against the explorations.",
        formula=CUTS.formula + r",\quad i > G/2",
        reference=REFERENCE,
        confidence="secondary",
        variants=VARIANTS,
        parts=[{"type": "cuts", "share": 0.5}, GROUP, CLIP, TOKENS],
    ),
)
