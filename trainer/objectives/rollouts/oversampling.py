"""T1's oversampling: many hot completions of each prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Domain, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Rollout
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.oversample import Oversample

if TYPE_CHECKING:
    from trainer.rollout.base import Scene, Strategy


class Oversampling(Rollout):
    """Oversampling (T1).

    Draws several times as many completions of each prompt as the step takes, hotter than the policy is trained, and
    keeps those whose rewards differ most. The policy is compared with itself at the training temperature.
    """

    title: ClassVar[str] = "Oversampling"
    paper: ClassVar[str] = "2501.11651; 2504.13818"
    formula: ClassVar[str] = (
        r"o_1, \dots, o_K \sim \pi^{(\tau T)},\quad "
        r"g = \operatorname*{arg\,max}_{s \subset \{1..K\},\ |s| = G} \operatorname{Var}_{i \in s} R_i"
    )
    domain: ClassVar[Domain] = "group"
    type: Literal["oversampling"] = "oversampling"
    factor: int = setting(4, help="Completions drawn for each one that the step takes.", ge=1, le=64)
    hotter: float = setting(1.2, help="Multiplies the temperature while completions are drawn.", gt=0, le=10)
    keep: Literal["spread", "first", "all"] = setting(
        "spread",
        help="Which stay: those whose rewards differ most, the first ones as a control, or all of them as one group.",
    )
    finished_first: bool = setting(
        True, help="Keep completions that were cut off only where there are not enough others."
    )

    def strategy(self, scene: Scene, step: Step) -> Strategy:
        return Oversample(scene, self.factor * scene.samples, self.hotter, self.keep, self.finished_first)

    def most(self, samples: int) -> int:
        return samples * self.factor if self.keep == "all" else samples

    def at_once(self, samples: int) -> int:
        return samples * self.factor

    def cost(self, samples: int) -> tuple[float, float]:
        return float(self.factor), float(self.factor)

    def beyond_plain(self) -> tuple[str, str] | None:
        if self.hotter == 1:
            return None
        return f"{self.type} draws at another temperature than it trains at", f"set hotter to 1 in {self.type}"


PARTS = (Oversampling,)
PRESETS = (
    Preset(
        name="t1",
        title="T1 oversampling",
        summary="Several times as many completions as a step takes are drawn hot, and those whose rewards differ most "
        "are learned from; an entropy bonus and a penalty towards the starting policy hold the width of the policy.",
        when="Right answers are rare, and generation is cheap beside learning.",
        formula=Oversampling.formula,
        reference=paper(
            "T1: Advancing Language Model Reasoning through Reinforcement Learning and Inference Scaling",
            "2501.11651",
            2025,
        ),
        confidence="reconstructed",
        assumed="The factor, the temperature and the choice of the largest spread of rewards (that of 2504.13818): the "
        "abstract names oversampling, an entropy bonus and a moving anchor alone. The anchor is the starting policy "
        "here, and the penalty on degenerate answers is that completions which were cut off are kept last.",
        parts=[
            {"type": "oversampling"},
            GROUP,
            CLIP,
            {"type": "kl_penalty"},
            {"type": "entropy_bonus", "coefficient": 0.001},
            TOKENS,
        ],
    ),
)
