"""Tree: the completions of one prompt that share first tokens, and where they may fork. No torch.

A completion that forks keeps its parent's first tokens and draws the rest anew, so every node is a whole completion, a
path from the prompt to a leaf. Data structure of EPTree (TreeRL, github.com/THUDM/TreeRL); measures are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import Literal

from trainer.errors import ConfigError
from trainer.rollout.base import Done

Measure = Literal["entropy", "surprisal"]


@dataclass(frozen=True)
class Place:
    """Where a completion may fork: in front of its token `at`, whose entropy or surprisal is `value`, nats.

    `given` is the branch's first token and its raw log-prob, where that is not to be drawn.
    """

    node: int
    at: int
    value: float
    given: tuple[int, float] | None = None


class Tree:
    """Completions of one prompt by request id, in the order they came.

    At most `budget` of them, none more than `depth` forks away from the prompt. Raises ValueError for a completion that
    breaks a bound or does not begin as its parent does.
    """

    def __init__(self, *, budget: int, depth: int) -> None:
        if budget < 1 or depth < 0:
            raise ValueError(f"a tree of {budget} completions and depth {depth} has no room; allow at least 1 and 0")
        self.budget, self.depth = budget, depth
        self.nodes: dict[int, Done] = {}
        self.depths: dict[int, int] = {}

    @property
    def left(self) -> int:
        """Return how many completions may still be added."""
        return self.budget - len(self.nodes)

    @property
    def roots(self) -> list[int]:
        """Return the completions that were drawn from the prompt."""
        return [index for index, depth in self.depths.items() if not depth]

    @property
    def leaves(self) -> list[Done]:
        """Return all completions: each ends in a leaf of its own."""
        return list(self.nodes.values())

    def add(self, done: Done) -> None:
        """Add a completion behind its parent."""
        request = done.request
        if request.id in self.nodes:
            raise ValueError(f"completion {request.id} is in the tree already")
        if not self.left:
            raise ValueError(f"the tree holds {self.budget} completions, and {request.id} is one too many")
        depth = 0 if request.parent is None else 1 + self._behind(done)
        if depth > self.depth:
            raise ValueError(f"completion {request.id} lies {depth} forks deep, and {self.depth} are allowed")
        self.nodes[request.id], self.depths[request.id] = done, depth

    def _behind(self, done: Done) -> int:
        """Return the depth of the parent, whose first tokens the completion must have."""
        request, at = done.request, done.request.fork_at
        if request.parent not in self.nodes:
            raise ValueError(f"completion {request.id} forks off {request.parent}, which is not in the tree")
        if at is None or done.ids[:at] != self.nodes[request.parent].ids[:at] or at > len(request.prefix_ids):
            raise ValueError(f"completion {request.id} does not begin as {request.parent} does")
        return self.depths[request.parent]

    def under(self, root: int) -> list[int]:
        """Return a completion and all that descend from it, in the order they came."""
        found = {root}
        for index, done in self.nodes.items():
            if done.request.parent in found:
                found.add(index)
        return [index for index in self.nodes if index in found]

    def own(self, node: int) -> range:
        """Return the places of a completion that none of its ancestors has; a branch's first token is its fork."""
        done = self.nodes[node]
        return range(0 if done.request.parent is None else (done.request.fork_at or 0) + 1, len(done.ids))

    def taken(self) -> set[tuple[int, int]]:
        """Return the places, node and token, at which a completion has forked."""
        pairs = ((done.request.parent, done.request.fork_at) for done in self.nodes.values())
        return {(node, at) for node, at in pairs if node is not None and at is not None}

    def places(
        self,
        nodes: Iterable[int],
        measure: Measure,
        count: int,
        allowed: Callable[[Done], Sequence[bool]] | None = None,
    ) -> list[Place]:
        """Return the `count` highest places where these completions may fork, earlier ones first among equals.

        A place where one forked already is none. `allowed` says which tokens of a completion may be drawn anew. Raises
        ConfigError where the engine gave none of the numbers wanted.

        Completions that came to the same tokens are equals there, however the engine rounded each: the first one's
        number stands for all, or else rounding would choose the parent.
        """
        taken, found = self.taken(), list[Place]()
        first: dict[tuple[int, ...], float] = {}  # numbers by the tokens that they follow from
        for node in nodes:
            done = self.nodes[node]
            values, fits = measured(done, measure), allowed(done) if allowed else ()
            open_ = (
                at
                for at in self.own(node)
                if (not fits or fits[at]) and (node, at) not in taken and math.isfinite(values[at])
            )
            for at in nlargest(count, open_, key=values.__getitem__):
                known = done.ids[: at + (measure == "surprisal")]  # that of a token includes it
                found.append(Place(node, at, first.setdefault(known, values[at])))
        return nlargest(count, found, key=lambda place: place.value)


def measured(done: Done, measure: Measure) -> list[float]:
    """Return entropy or surprisal of each token, nats; raise ConfigError where the engine gives no entropy."""
    if measure == "surprisal":
        return [-value for value in done.logprob]
    if done.generation.estimator == "none" or len(done.entropy) != len(done.ids):
        raise ConfigError(
            "sampling.engine: completions fork by entropy, and this engine gives none; choose hf, or surprisal as the "
            "measure where the method has it",
            "sampling.engine",
        )
    return done.entropy


def pieces(done: Done) -> list[str]:
    """Return the text of each token; broken bytes are left out."""
    text = done.text.encode()
    ends = [*done.offsets[1:], len(text)]
    return [text[start:end].decode(errors="ignore") for start, end in zip(done.offsets, ends, strict=True)]


def cut(done: Done, length: int) -> Done:
    """Return a completion cut off behind its first `length` tokens, finished as "pruned"."""
    own = max(0, length - len(done.request.prefix_ids))
    made = done.generation
    lists = ("ids", "logprob", "entropy", "low", "high", "behaviour", "top_ids", "top_logprob")
    generation = replace(
        made,
        finish_reason="pruned",
        moments={name: values[:own] for name, values in made.moments.items()},
        **{name: getattr(made, name)[:own] for name in lists},
    )
    end = done.offsets[length] if length < len(done.offsets) else len(done.text.encode())
    return replace(
        done,
        generation=generation,
        text=done.text.encode()[:end].decode(errors="ignore"),
        offsets=done.offsets[:length],
        ids=done.ids[:length],
        logprob=done.logprob[:length],
        entropy=done.entropy[:length],
        reward=None,
        right=None,
    )
