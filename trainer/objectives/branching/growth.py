"""Growth: what branching strategies share. They draw whole completions, then grow them at places a method chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Literal

from trainer.objectives.stages import Rollout
from trainer.part import setting
from trainer.rollout.base import Done, GenRequest, Pick, Scene
from trainer.rollout.tree import Place, Tree

Prefix = Literal["masked", "counted"]
DICE = 2  # sets a strategy's own random numbers apart from those that draw tokens


class Branching(Rollout):
    """A part whose completions fork. Groups have the run's number of samples, which its trees fill up."""

    incompatible: ClassVar[frozenset[str]] = frozenset({"aepo_sampling", "scope_sampling"})

    def fewest(self) -> int:
        """Return how many completions one tree has."""
        return 1

    def unfit(self, samples: int) -> str:
        if samples >= self.fewest():
            return ""
        return (
            f"sampling.samples_per_prompt: a tree of {self.type} has {self.fewest()} completions, and a group "
            f"{samples}; "
            f"take at least {self.fewest()}"
        )


def prefix_setting(default: Prefix, help: str = "") -> Prefix:
    """Return the setting that says whether shared tokens are learned in every completion that has them."""
    text = "Tokens shared with a parent: counted in each completion that has them, or masked in all but the parent."
    return setting(default, help=f"{text} {help}".strip(), advanced=True)


class Growth:
    """Grows a tree for each prompt, wave by wave, until each group has its number of samples.

    A method says how many whole completions a group begins with, and for each wave where to go on: a Place, or None for
    another whole completion. Where it names no place, what is left of the group is drawn from the prompt.
    """

    grades: ClassVar[bool] = False

    def __init__(self, scene: Scene, *, prefix: Prefix, depth: int) -> None:
        self.scene, self.prefix = scene, prefix
        self.prompts = {prompt.group: prompt for prompt in scene.prompts}
        self.trees = {group: Tree(budget=scene.samples, depth=depth) for group in self.prompts}
        self.asked = dict.fromkeys(self.prompts, 0)  # completions of each group
        self.ids = 0
        self.places: list[tuple[Done, Place]] = []

    @property
    def most(self) -> int:
        return self.scene.samples

    def begin(self) -> int:
        """Return how many whole completions a group begins with."""
        raise NotImplementedError

    def plan(self, tree: Tree) -> Sequence[Place | None]:
        """Return where the next completions of a group begin, each with a request of its own."""
        raise NotImplementedError

    def grown(self, tree: Tree, done: Done) -> Done:
        """Return what enters the tree of a completion that came back."""
        return done

    def first_wave(self) -> list[GenRequest]:
        count = min(self.begin(), self.scene.samples)
        return [self.whole(group) for group in self.prompts for _ in range(count)]

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        for one in done:
            tree = self.trees[one.request.group]
            if one.request.id not in tree.nodes:
                tree.add(self.grown(tree, one))
        return [request for group, tree in self.trees.items() if tree.left for request in self._wave(group, tree)]

    def _wave(self, group: int, tree: Tree) -> list[GenRequest]:
        planned = list(self.plan(tree))[: tree.left] or [None] * tree.left
        return [self.whole(group) if place is None else self.fork(group, tree, place) for place in planned]

    def whole(self, group: int) -> GenRequest:
        """Return a request for another completion of a prompt, drawn as a plain group would draw it."""
        index, sample = self._next(group)
        return self.scene.request(index, self.prompts[group], sample, group, sample, 0)

    def fork(self, group: int, tree: Tree, place: Place) -> GenRequest:
        """Return a request that goes on from a place."""
        parent, (index, sample) = tree.nodes[place.node], self._next(group)
        self.places.append((parent, place))
        return self.scene.fork(index, parent, place.at, sample, group, sample, 0, given=place.given)

    def _next(self, group: int) -> tuple[int, int]:
        self.ids, self.asked[group] = self.ids + 1, self.asked[group] + 1
        return self.ids - 1, self.asked[group] - 1

    def dice(self, *seed: int) -> Random:
        """Return random numbers that depend on the run's seed, the step and these numbers alone."""
        return Random(self.scene.seed_of(*seed, DICE))

    def spent(self) -> tuple[int, ...]:
        return ()

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        return [
            Pick(leaf, group, leaf.request.sample, self.prefix)
            for group, tree in self.trees.items()
            for leaf in tree.leaves
        ]

    def tally(self) -> Counter[str]:
        """Return what the figures are made of, as sums over this process's trees."""
        leaves = [leaf for tree in self.trees.values() for leaf in tree.leaves]
        found: Counter[str] = Counter(trees=len(self.trees), forks=len(self.places), leaves=len(leaves))
        found["whole"] = sum(len(tree.roots) for tree in self.trees.values())
        found["depth"] = sum(max(tree.depths.values(), default=0) for tree in self.trees.values())
        found["new"] = sum(len(leaf.generation.ids) for leaf in leaves)
        found["tokens"] = sum(len(leaf.ids) for leaf in leaves)
        found["bounds"] = sum(parent.generation.estimator == "bounds" for parent, _ in self.places)
        means: dict[str, Any] = {
            "value": sum(place.value for _, place in self.places),
            "position": sum(place.at / len(parent.ids) for parent, place in self.places),
        }
        found.update(means)
        return found

    def figures(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for part in self.scene.together(self.tally()):
            total.update(part)
        return self.shares(total)

    def shares(self, total: Counter[str]) -> dict[str, float]:
        """Return the figures, given the sums over all processes."""
        shares = {
            "rollout/forks": ("forks", "trees"),
            "rollout/whole": ("whole", "trees"),
            "rollout/new_token_share": ("new", "tokens"),
            "rollout/fork_depth": ("depth", "trees"),
            "rollout/fork_value": ("value", "forks"),
            "rollout/fork_position": ("position", "forks"),
            "rollout/fork_bounds_share": ("bounds", "forks"),
        }
        return {name: total[part] / total[whole] for name, (part, whole) in shares.items() if total[whole]}
