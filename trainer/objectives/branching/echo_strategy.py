"""ECHO's strategy: where paths fork, how wide, and where they are cut off. Imports numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import ConfigError
from trainer.objectives.branching.growth import Growth
from trainer.objectives.surrogates.echo import TOP
from trainer.rollout.base import Done, Scene
from trainer.rollout.tree import Place, Tree, cut, measured

if TYPE_CHECKING:
    from trainer.objectives.branching.echo import EchoRollout

Array = np.ndarray
ROUNDING = 1e-9  # a mean that moves by less has not moved


@dataclass(frozen=True)
class Signals:
    """What ECHO reads of each token of a path, [T]: entropy, its rise, confidence of the last tokens and of the tail.

    `confidence` is each token's own.
    """

    entropy: Array
    confidence: Array
    rise: Array
    recent: Array
    tail: Array

    @staticmethod
    def of(entropy: Sequence[float] | Array, confidence: Sequence[float] | Array, part: EchoRollout) -> Signals:
        """Return the signals of a path from its tokens' entropies (nats) and confidences."""
        entropy, confidence = np.asarray(entropy, float), np.asarray(confidence, float)
        before = np.concatenate([entropy[:1], trailing(entropy, part.entropy_window)[:-1]])
        recent, tail = (trailing(confidence, window) for window in (part.confidence_window, part.tail_window))
        return Signals(entropy, confidence, entropy - before, recent, tail)

    def fork(self, first: int, part: EchoRollout) -> int | None:
        """Return the first token, from `first` on, at which the path forks."""
        fires = (self.entropy >= part.entropy_high) & (self.recent <= part.branch_confidence) & (self.rise >= part.rise)
        found = np.flatnonzero(fires[first:])
        return int(found[0]) + first if len(found) else None

    def width(self, at: int, part: EchoRollout) -> int:
        """Return in how many ways the path goes on at a token."""
        unsure = (self.entropy[at] - part.entropy_low) / (part.entropy_high - part.entropy_low)
        confident = (self.recent[at] - part.branch_confidence) / part.branch_confidence
        ways = round(float(1 + part.entropy_weight * unsure - part.confidence_weight * confident))
        return min(max(ways, 1), part.width)

    def end(self, part: EchoRollout) -> int | None:
        """Return the first token behind which the path is cut off."""
        falls = np.diff(self.tail, prepend=self.tail[:1]) < -ROUNDING
        fires = self.recent < part.prune_confidence
        fires |= (streak(falls) >= part.tail_steps) & (self.tail <= part.tail_confidence)
        fires |= (streak(self.rise > ROUNDING) >= part.rise_steps) & (self.rise > part.rise_limit)
        found = np.flatnonzero(fires)
        return int(found[0]) if len(found) else None


def trailing(values: Array, window: int) -> Array:
    """Return the mean of each value and up to `window` - 1 before it, [T]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (sums[end] - sums[start]) / (end - start)


def streak(flags: Array) -> Array:
    """Return how many flags in a row, up to each one, are set, [T]."""
    place = np.arange(len(flags))
    return place - np.maximum.accumulate(np.where(flags, -1, place))


class WideAndPruned(Growth):
    """Waves of branches until no path forks any more or the group is full."""

    def __init__(self, scene: Scene, part: EchoRollout) -> None:
        tap = replace(scene.tap, topk=max(scene.tap.topk, TOP, part.width))
        super().__init__(replace(scene, tap=tap), prefix=part.prefix, depth=part.depth)
        self.part = part
        self.paths: dict[int, Signals] = {}
        self.seen: set[int] = set()  # paths that have had their chance to fork
        self.widths: list[int] = []

    def begin(self) -> int:
        return self.part.roots

    def grown(self, tree: Tree, done: Done) -> Done:
        """Return the completion as far as its path was not pruned."""
        path = self.paths[done.request.id] = self._path(done)
        end = path.end(self.part)
        return done if end is None or end + 1 >= len(done.ids) else cut(done, end + 1)

    def _path(self, done: Done) -> Signals:
        request, made = done.request, done.generation
        if made.ids and not made.top_logprob:
            raise ConfigError(
                "sampling.engine: echo_rollout needs the likeliest tokens, and this engine gives none; choose one "
                "of exact entropy, such as hf",
                "sampling.engine",
            )
        own = np.array([_confidence(tops, self.part.confidence) for tops in made.top_logprob])
        parent = self.paths[request.parent].confidence if request.parent is not None else own[:0]
        before = parent[: len(request.prefix_ids)]
        return Signals.of(measured(done, "entropy"), np.concatenate([before, own]), self.part)

    def plan(self, tree: Tree) -> list[Place | None]:
        new = [node for node in tree.nodes if node not in self.seen]
        self.seen.update(new)
        return [place for node in new if tree.depths[node] < tree.depth for place in self.branches(tree, node)]

    def branches(self, tree: Tree, node: int) -> list[Place | None]:
        """Return the ways on from where a path forks, besides its own: one for each of the likeliest other tokens."""
        done, path = tree.nodes[node], self.paths[node]
        at = path.fork(max(tree.own(node).start, self.part.min_depth), self.part)
        ended = done.generation.finish_reason == "pruned"  # nothing goes on from the token behind which it is cut
        if at is None or at >= min(len(done.ids) - ended, self.scene.max_new - 1):
            return []
        width = path.width(at, self.part)
        self.widths.append(width)
        own = at - len(done.request.prefix_ids)
        likeliest = zip(done.generation.top_ids[own], done.generation.top_logprob[own], strict=True)
        others = [(i, p) for i, p in likeliest if i != done.ids[at] and i not in self.scene.special_ids]
        return [Place(node, at, float(path.entropy[at]), given) for given in others[: width - 1]]

    def tally(self) -> Counter[str]:
        leaves = [leaf for tree in self.trees.values() for leaf in tree.leaves]
        pruned = sum(leaf.generation.finish_reason == "pruned" for leaf in leaves)
        return super().tally() + Counter(pruned=pruned, widths=sum(self.widths), open=len(self.widths))

    def shares(self, total: Counter[str]) -> dict[str, float]:
        pruned = total["pruned"] / max(1, total["leaves"])
        width = {"rollout/fork_width": total["widths"] / total["open"]} if total["open"] else {}
        return {**super().shares(total), "rollout/pruned_share": pruned, **width}


def _confidence(logprobs: Sequence[float], form: str) -> float:
    """Return the confidence of one token from its likeliest tokens' log-probs."""
    tops = np.asarray(logprobs[:TOP])
    return float(-tops.mean() if form == "concentration" else np.exp(tops).mean())
