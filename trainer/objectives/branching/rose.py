"""ROSE's rollout: one completion after the other, most of them forking where the prompt's tree is least sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.branching.growth import Branching, Growth, Prefix, prefix_setting
from trainer.objectives.branching.tree_advantage import FORMULA as SEGMENTS
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stock import CLIP
from trainer.part import setting
from trainer.rollout.tree import Place, Tree

if TYPE_CHECKING:
    from trainer.rollout.base import Scene

FORMULA = (
    r"y_{k+1} \sim \pi_\theta(\cdot \mid x)\ \text{with probability}\ \varepsilon,\ \text{else}\ "
    r"\pi_\theta(\cdot \mid x, y_{j, <t}),\quad (j, t) = \arg\max_{j \le k,\, t} H_{jt}"
)


class Rose(Branching):
    """One fork at a time at the least certain token (ROSE).

    The completions of a prompt are drawn one after the other. Each begins anew with probability epsilon, else it goes
    on in front of the most entropic token of all the prompt's completions so far that was not forked at before. Every
    completion waits for the one before, so a step takes as many waves as a group has samples.
    """

    title: ClassVar[str] = "One fork at a time at the least certain token (ROSE)"
    paper: ClassVar[str] = "2601.05053"
    formula: ClassVar[str] = FORMULA
    type: Literal["rose"] = "rose"
    epsilon: float = setting(0.5, help="Probability that a completion begins at the prompt.", ge=0, le=1)
    metric: Literal["entropy"] = setting(
        "entropy", help="What ranks places: the policy's entropy; the authors multiply it by a spread of meanings."
    )
    prefix: Prefix = prefix_setting("counted")

    def strategy(self, scene: Scene, step: Step) -> OneByOne:
        return OneByOne(scene, self)


class OneByOne(Growth):
    """One completion of each prompt in a wave."""

    def __init__(self, scene: Scene, part: Rose) -> None:
        super().__init__(scene, prefix=part.prefix, depth=scene.samples)
        self.part = part

    def begin(self) -> int:
        return 1

    def plan(self, tree: Tree) -> list[Place | None]:
        first = next(iter(tree.nodes.values())).request
        if self.dice(first.group, len(tree.nodes)).random() < self.part.epsilon:
            return [None]
        return [*tree.places(tree.nodes, self.part.metric, 1)] or [None]


PARTS = (Rose,)
PRESETS = (
    Preset(
        name="rose-entropy",
        title="ROSE, forks by entropy",
        summary="Half of the completions begin at the prompt, the others where the tree of the prompt's answers is "
        "least sure, and each segment is credited with what it gains over the point it left. Doubtful turns are tried "
        "again at once, which keeps several of them open.",
        when="Small groups, where the time of one completion after the other does not matter.",
        formula=FORMULA + r",\quad " + SEGMENTS,
        reference=paper("Reinforced Efficient Reasoning via Semantically Diverse Exploration", "2601.05053", 2026),
        confidence="code",
        variants="Only the entropy metric: the authors rank places by entropy times a divergence of the candidates' "
        "embeddings, whose sign turns the ranking over where candidates are alike, and the entropy is that of the 20 "
        "likeliest tokens; here it is exact. A place serves once; theirs is chosen again until another exceeds it. "
        "Values are those of a tree's segments; theirs mix completions that fork at the same position. Their length "
        "penalty, off by default, is left out.",
        parts=[
            {"type": "rose"},
            {"type": "tree_advantage", "root": 0.0, "spread": 0.0},
            CLIP,
            {"type": "kl_penalty", "coefficient": 1e-3},
            {"type": "const_norm"},
        ],
    ),
)
