"""TreeRL's EPTree: a few whole answers grow into trees, at the places where the policy was surprised or unsure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.branching.growth import Branching, Growth, Prefix, prefix_setting
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stock import CLIP, TOKENS
from trainer.part import setting
from trainer.rollout.tree import Measure, Place, Tree, pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.rollout.base import Done, Scene

FORMULA = (
    r"\text{per tree and round: the } N \text{ unused } t \text{ of largest } -\ln \pi(y_t \mid x, y_{<t}),"
    r"\quad T \text{ continuations of each},\quad |g| = M (1 + N T L)"
)


class EpTree(Branching):
    """Trees grown at surprising tokens (EPTree).

    Whole completions are the trunks of trees. In each round, every tree is continued from its N most surprising
    tokens, or its most entropic ones, T times each, over all of its branches; no token is used twice. Samples per
    prompt are shared out: a tree has 1 + N T L of them, and what does not make a tree stays whole.
    """

    title: ClassVar[str] = "Trees grown at surprising tokens (EPTree)"
    paper: ClassVar[str] = "2506.11902"
    formula: ClassVar[str] = FORMULA
    type: Literal["eptree"] = "eptree"
    forks: int = setting(2, help="N: places of each tree from which a round goes on.", ge=1, le=1000)
    continuations: int = setting(2, help="T: completions from each of these places.", unit="samples", ge=1, le=1000)
    rounds: int = setting(1, help="L: rounds of growth; each waits for the one before.", ge=1, le=100)
    measure: Measure = setting(
        "surprisal",
        help="How places are ranked: by the negative log-prob of their token, as released, or by the policy's entropy.",
    )
    ends: list[str] = setting(
        help="Behind a token whose text contains one of these words a branch is not continued: the answer is out.",
        default_factory=lambda: ["conclusion", "answer"],
        max_length=100,
        advanced=True,
    )
    prefix: Prefix = prefix_setting("counted")

    def fewest(self) -> int:
        return 1 + self.forks * self.continuations * self.rounds

    def strategy(self, scene: Scene, step: Step) -> Trees:
        return Trees(
            scene, forks=self.forks, continuations=self.continuations, rounds=self.rounds, measure=self.measure,
            ends=self.ends, prefix=self.prefix,
        )  # fmt: skip


class Trees(Growth):
    """Whole completions, then so many rounds, in each of which every tree grows by forks times continuations."""

    def __init__(
        self,
        scene: Scene,
        *,
        forks: int,
        continuations: int,
        rounds: int,
        measure: Measure,
        ends: Sequence[str] = (),
        prefix: Prefix,
    ) -> None:
        super().__init__(scene, prefix=prefix, depth=rounds)
        self.forks, self.continuations, self.measure = forks, continuations, measure
        self.ends = [word.lower() for word in ends if word]
        self.branches = forks * continuations * rounds  # of each tree
        self.count = scene.samples // (1 + self.branches)  # M

    def begin(self) -> int:
        return self.scene.samples - self.count * self.branches

    def plan(self, tree: Tree) -> list[Place | None]:
        return [place for root in tree.roots[: self.count] for place in self.grow(tree, root)]

    def grow(self, tree: Tree, root: int) -> list[Place | None]:
        """Return where one tree goes on in this round; its places repeat where they are too few."""
        found: list[Place | None] = list(tree.places(tree.under(root), self.measure, self.forks, self.allowed))
        found = found or [None]
        chosen = [found[index % len(found)] for index in range(self.forks)]
        return [place for place in chosen for _ in range(self.continuations)]

    def allowed(self, done: Done) -> list[bool]:
        """Return which tokens may be drawn anew: those up to the first of the completion's own that ends it."""
        request = done.request
        fits, own = [True] * len(done.ids), len(request.prefix_ids)
        for at, text in enumerate(pieces(done)):
            if at >= own and any(word in text.lower() for word in self.ends):
                return [True] * (at + 1) + [False] * (len(fits) - at - 1)
        return fits


PARTS = (EpTree,)
PRESETS = (
    Preset(
        name="treerl",
        title="TreeRL",
        summary="Answers branch at their most surprising tokens, and what a branch wins or loses against the point it "
        "left credits the tokens between: the policy learns which step was good instead of which answer. Unlikely "
        "steps are tried more often, so entropy falls more slowly.",
        when="Rewards come only at the end and answers are long. 30 samples per prompt are the authors' 6 trees; they "
        "draw at temperature 1.2.",
        formula=FORMULA,
        reference=paper("TreeRL: LLM Reinforcement Learning with On-Policy Tree Search", "2506.11902", 2025),
        confidence="code",
        variants="The released code calls the surprisal of the drawn token its entropy: measure = entropy takes the "
        "policy's. In a second round it may fork again where it did before, and prefers to; here each place serves "
        "once. It leaves out part of the leaves at random (16 of 30); here all are learned from. It divides each value "
        "by the root of its own number of completions before the differences are taken, scales values by n / (n - 1) "
        "and centres them over the tokens of the prompt's trees; here the difference is divided, as described.",
        parts=[{"type": "eptree"}, {"type": "tree_advantage"}, CLIP, TOKENS],
    ),
)
