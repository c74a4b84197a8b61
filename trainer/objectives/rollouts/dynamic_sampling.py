"""DAPO's dynamic sampling: prompts that teach nothing are replaced by further ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Domain, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Rollout
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.dynamic import Dynamic

if TYPE_CHECKING:
    from trainer.rollout.base import Scene, Strategy


class DynamicSampling(Rollout):
    """Dynamic sampling (DAPO).

    Groups whose completions are all right or all wrong have no advantage. They give way to further prompts, wave after
    wave, until the step has its number of groups with a difference. Each wave costs a step's generation; where the
    waves are not enough, groups without a difference fill the step up and do not learn.
    """

    title: ClassVar[str] = "Dynamic sampling"
    paper: ClassVar[str] = "2503.14476"
    formula: ClassVar[str] = r"0 < \bigl|\{i \in g : o_i \text{ right}\}\bigr| < G \quad\text{for every group } g"
    domain: ClassVar[Domain] = "step"
    type: Literal["dynamic_sampling"] = "dynamic_sampling"
    by: Literal["right", "reward"] = setting(
        "right", help="What has to differ within a group: right and wrong answers, or the reward before shaping."
    )
    max_waves: int = setting(10, help="Most waves of prompts in a step, the first counted.", unit="waves", ge=1, le=100)
    refill: Literal["whole", "missing"] = setting(
        "whole",
        help="Prompts of a further wave: as many as a step has, as in the paper, or only as many as are likely enough.",
    )

    def strategy(self, scene: Scene, step: Step) -> Strategy:
        return Dynamic(scene, self.by, self.max_waves, self.refill)

    def unfit(self, samples: int) -> str:
        if samples > 1:
            return ""
        return (
            "sampling.samples_per_prompt: one completion of a prompt never differs from itself, so dynamic_sampling "
            "would keep nothing; take 2 or more"
        )

    def cost(self, samples: int) -> tuple[float, float]:
        return 1.0, float(self.max_waves)


PARTS = (DynamicSampling,)
PRESETS = (
    Preset(
        name="dapo-dynamic",
        title="DAPO with dynamic sampling",
        summary="DAPO as published: prompts that the policy always or never solves are replaced by further prompts, so "
        "every group of the step has an advantage; with the higher upper clip and the soft length penalty.",
        when="Many prompts are too easy or too hard, and the gradient of a step should not shrink with them.",
        formula=DynamicSampling.formula,
        reference=paper("DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "2503.14476", 2025),
        confidence="code",
        variants="The authors generate three steps' worth of prompts at once, cut the surplus, and end the run where "
        "the waves are not enough; here a wave is one step's worth, and what is missing is filled with groups that do "
        "not learn.",
        parts=[
            {"type": "dynamic_sampling"},
            {"type": "soft_overlong"},
            GROUP,
            CLIP_HIGHER | {"dual_clip": 10.0},
            TOKENS,
        ],
    ),
)
