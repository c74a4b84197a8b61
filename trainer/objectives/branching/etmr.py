"""ETTRL's rollout (ETMR): votes come from trees that fork where the policy is unsure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.branching.growth import Branching, Prefix, prefix_setting
from trainer.objectives.branching.treerl import Trees
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from trainer.rollout.base import Scene

FORMULA = (
    r"\text{per tree: } B \text{ continuations from each of the } N \text{ tokens of largest } H_t,\quad "
    r"|g| = M (1 + B N),\quad A_i \leftarrow \Bigl(2 - \bar H_i / \operatorname{mean}_g \bar H\Bigr) A_i"
)


class Etmr(Branching):
    """Majority rollout from entropy forks (ETMR).

    Each whole completion is continued from its N most entropic tokens, B times each. All of them vote. Samples per
    prompt are shared out: a tree has 1 + B N of them, and what does not make a tree stays whole.
    """

    title: ClassVar[str] = "Majority rollout from entropy forks (ETMR)"
    paper: ClassVar[str] = "2508.11356"
    formula: ClassVar[str] = r"|g| = M (1 + B N)"
    type: Literal["etmr"] = "etmr"
    forks: int = setting(2, help="N: most entropic tokens of a completion that are drawn anew.", ge=1, le=1000)
    continuations: int = setting(2, help="B: completions from each of these places.", unit="samples", ge=1, le=1000)
    prefix: Prefix = prefix_setting("counted", "The source does not say.")

    def fewest(self) -> int:
        return 1 + self.forks * self.continuations

    def strategy(self, scene: Scene, step: Step) -> Trees:
        return Trees(
            scene, forks=self.forks, continuations=self.continuations, rounds=1, measure="entropy", prefix=self.prefix
        )


PARTS = (Etmr,)
PRESETS = (
    Preset(
        name="ettrl",
        title="ETTRL",
        summary="The vote that stands for the right answer is taken over trees which fork where the policy is unsure, "
        "and calm answers weigh more than livelier ones. The same votes cost fewer tokens and differ more; the policy "
        "still sharpens towards the majority, so entropy falls, but from a broader vote.",
        when="Prompts without reference answers. 60 samples per prompt are the authors' 12 trees. They find it "
        "sensitive to the sampling temperature.",
        formula=FORMULA,
        reference=paper(
            "ETTRL: Balancing Exploration and Exploitation in LLM Test-Time RL via Entropy Mechanism",
            "2508.11356",
            2025,
        ),
        confidence="secondary",
        assumed="The token at a fork is drawn anew, shared tokens count in every completion that has them, and all "
        "votes are learned from. The floor of the reshaping factor at 0.",
        parts=[{"type": "etmr"}, {"type": "majority_vote"}, GROUP, {"type": "ear"}, CLIP, TOKENS],
    ),
)
