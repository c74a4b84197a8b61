"""DARS: more completions of the prompts that few solve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.base import Domain, Step
from trainer.objectives.preset import Preset, Reference, paper
from trainer.objectives.stages import Rollout
from trainer.objectives.stock import CLIP, GROUP_NO_STD, TOKENS
from trainer.part import setting
from trainer.rollout.adaptive import Adaptive

if TYPE_CHECKING:
    from trainer.rollout.base import Scene, Strategy


class AdaptiveSampling(Rollout):
    """Difficulty-adaptive sampling (DARS).

    After the usual completions of each prompt, prompts of which less than half is right get more, so that their
    advantages add up to as much as those of a prompt of accuracy 1/2 ("equal"), or to more the harder they are
    ("hard"). Both waves are one group.
    """

    title: ClassVar[str] = "Difficulty-adaptive sampling"
    paper: ClassVar[str] = "2508.13755"
    formula: ClassVar[str] = (
        r"\Delta N = \left\lceil \frac{c\,N\,S(\tfrac12) - N\,S(a)}{S(a)} \right\rceil,\quad S(a) = 2a(1-a),\quad "
        r"c = 1\ \text{(equal)},\ 2(1-a)\ \text{(hard)},\quad N + \Delta N \le N_{\max}"
    )
    domain: ClassVar[Domain] = "group"
    type: Literal["adaptive_sampling"] = "adaptive_sampling"
    schedule: Literal["equal", "hard"] = setting(
        "equal", help="What the advantages of a hard prompt add up to: as much as elsewhere, or more the harder it is."
    )
    max_samples: int = setting(
        32, help="Most completions of a prompt, the first wave counted.", unit="samples", ge=2, le=4096
    )
    advantage: Literal["centred", "standardised"] = setting(
        "centred",
        help="Size of an advantage that is assumed: of centred rewards, S = 2a(1 - a), or of those divided by their "
        "std, S = 2 sqrt(a(1 - a)).",
    )

    def strategy(self, scene: Scene, step: Step) -> Strategy:
        return Adaptive(scene, self.schedule, self.advantage, self.max_samples)

    def unfit(self, samples: int) -> str:
        if self.max_samples > samples:
            return ""
        return (
            f"sampling.samples_per_prompt: {samples} samples leave no room for more under adaptive_sampling's "
            f"max_samples, {self.max_samples}; take fewer samples or raise max_samples"
        )

    def most(self, samples: int) -> int:
        return max(samples, self.max_samples)

    def cost(self, samples: int) -> tuple[float, float]:
        return 1.0, self.most(samples) / samples


SOURCE: Reference = paper(
    "Depth-Breadth Synergy in RLVR: Unlocking LLM Reasoning Gains with Adaptive Exploration", "2508.13755", 2025
)
REST: list[dict[str, Any]] = [GROUP_NO_STD, {"type": "zero_variance_filter"}, CLIP, TOKENS]
VARIANTS = (
    "The authors take 8 samples of each prompt first and learn from the whole batch at once, twice over; here a batch "
    "is gone through once. Clip and aggregation are those of GRPO."
)

PARTS = (AdaptiveSampling,)
PRESETS = (
    Preset(
        name="dars-et",
        title="DARS, equal treatment",
        summary="Prompts that few completions solve are sampled more, until their advantages weigh as much as those of "
        "a prompt that half of them solve; solved ones keep their share.",
        when="Hard prompts are lost: pass@k stands still while the mean reward rises.",
        formula=AdaptiveSampling.formula,
        reference=SOURCE,
        confidence="code",
        variants=VARIANTS,
        parts=[{"type": "adaptive_sampling"}, *REST],
    ),
    Preset(
        name="dars-hw",
        title="DARS, hardness-weighted",
        summary="As DARS with equal treatment, but the harder a prompt, the more its advantages weigh: up to twice as "
        "much as those of a prompt that half of the completions solve.",
        when="Hard prompts matter most and generation is cheap.",
        formula=AdaptiveSampling.formula,
        reference=SOURCE,
        confidence="code",
        variants=VARIANTS,
        parts=[{"type": "adaptive_sampling", "schedule": "hard", "max_samples": 64}, *REST],
    ),
)
