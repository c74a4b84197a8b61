"""CURE: half-finished answers are taken up again from a token at which the policy hesitated."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.branching.growth import Branching, Growth
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stock import CLIP_HIGHER, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.tree import Place, Tree, pieces

if TYPE_CHECKING:
    from trainer.rollout.base import Done, Scene

FORMULA = (
    r"t^\ast \sim \mathrm{Uniform}\bigl(\text{the } K \text{ allowed } t \text{ of largest } H_t\bigr),\quad "
    r" y' \sim \pi_\theta(\cdot \mid x, y_{<t^\ast}),\quad |g| = n_1 + n_1 n_2"
)


class Cure(Branching):
    """Regeneration from a critical token (CURE).

    Of each whole completion the K most entropic tokens are looked up, without the first token, special tokens and
    tokens of a single character; one of them is drawn at random and new completions go on in front of it, together in
    one group with the old. What they share is masked: only new tokens are learned from them. Samples per prompt are
    shared out: with n2 continuations each, samples / (n2 + 1) completions are continued.
    """

    title: ClassVar[str] = "Regeneration from a critical token (CURE)"
    paper: ClassVar[str] = "2508.11016"
    formula: ClassVar[str] = FORMULA
    type: Literal["cure"] = "cure"
    continuations: int = setting(3, help="n2: new completions from each whole one.", unit="samples", ge=1, le=1023)
    candidates: int = setting(20, help="K: most entropic tokens of which one is drawn.", unit="tokens", ge=1, le=100000)
    choose: Literal["entropy", "random"] = setting(
        "entropy", help="Among the most entropic tokens, or as a control arm among all that are allowed."
    )
    min_characters: int = setting(
        2,
        help="Tokens with fewer characters, spaces at the ends aside, are no critical tokens; 1 where tokens are "
        "single characters.",
        ge=0,
        le=1000,
        advanced=True,
    )

    def fewest(self) -> int:
        return 1 + self.continuations

    def strategy(self, scene: Scene, step: Step) -> Regeneration:
        return Regeneration(scene, self)


class Regeneration(Growth):
    """Two waves: whole completions, then the continuations of as many of them as the group has room for."""

    def __init__(self, scene: Scene, part: Cure) -> None:
        super().__init__(scene, prefix="masked", depth=1)
        self.part = part
        self.continued = scene.samples // part.fewest()  # n1

    def begin(self) -> int:
        return self.scene.samples - self.continued * self.part.continuations

    def plan(self, tree: Tree) -> list[Place | None]:
        roots = tree.roots[: self.continued]
        return [place for root in roots for place in [self.critical(tree, root)] * self.part.continuations]

    def critical(self, tree: Tree, root: int) -> Place | None:
        """Return one of the completion's critical places at random; None where no token is allowed."""
        request, tokens = tree.nodes[root].request, len(tree.nodes[root].ids)
        if self.part.choose == "entropy":
            found = tree.places([root], "entropy", self.part.candidates, self.allowed)
        else:
            found = tree.places([root], "surprisal", tokens, self.allowed)
        return self.dice(request.group, request.sample).choice(found) if found else None

    def allowed(self, done: Done) -> list[bool]:
        """Return which tokens may be critical: not the first, not special, not too short."""
        special, least = self.scene.special_ids, self.part.min_characters
        texts = zip(done.ids, pieces(done), strict=True)
        return [at > 0 and i not in special and len(t.strip()) >= least for at, (i, t) in enumerate(texts)]


PARTS = (Cure,)
PRESETS = (
    Preset(
        name="cure",
        title="CURE",
        summary="Whole answers are taken up again from a token at which the policy hesitated, and old and new ones are "
        "compared in one group. More of the samples explore what follows a fork, so entropy stays up longer.",
        when="First stage of a run, while exploration matters; the authors go on with plain DAPO after 300 steps, "
        "which is a second run from this one's weights with the preset dapo. 16 samples per prompt are the authors' 4 "
        "whole completions with 3 continuations each. Where tokens are single characters, set min_characters = 1.",
        formula=FORMULA,
        reference=paper(
            "CURE: Critical-Token-Guided Re-Concatenation for Entropy-Collapse Prevention", "2508.11016", 2025
        ),
        confidence="code",
        variants="The authors cut the tail off a prefix that with its prompt exceeds the longest prompt, which moves "
        "the fork to an earlier token; here a prefix and what follows share the limit of a completion. A completion "
        "without an allowed token is followed by fresh samples, as in their code. They use a learning rate of 1e-6 "
        "and sample further prompts in place of groups with equal rewards, which are only left out here.",
        parts=[
            {"type": "cure"},
            GROUP,
            {"type": "zero_variance_filter"},
            {**CLIP_HIGHER, "dual_clip": 10.0},
            TOKENS,
        ],
    ),
)
