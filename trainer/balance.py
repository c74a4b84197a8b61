"""Balance: the groups of a step dealt anew to the processes, so that all have about as many tokens to learn from.

Prompts are dealt before anyone knows how long their completions will be, and an update takes as long as its fullest
process. Groups stay whole, because a prompt is run once for all its completions. Who holds a completion never changes
the result: the step's order is that of the completions' indices (trainer/layout.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.completion import Completion
from trainer.distributed import World

WORTH = 1.02  # completions travel where the fullest process gets lighter by this factor


def balanced(completions: list[Completion], world: World, minibatches: int) -> list[Completion]:
    """Return the completions this process learns from, ordered by index; every process must call.

    Each minibatch is an update of its own and is balanced by itself.
    """
    if world.size == 1:
        return completions
    parts = world.gather(costs(completions))
    held = {group: rank for rank, part in enumerate(parts) for group in part}
    tokens = {group: cost for part in parts for group, cost in part.items()}
    owner, groups = dict[int, int](), max(tokens, default=0) + 1
    for number in range(minibatches):
        chosen = {group: cost for group, cost in tokens.items() if group * minibatches // groups == number}
        dealt = deal(chosen, held, world.size)
        worth = fullest(chosen, held, world.size) > WORTH * fullest(chosen, dealt, world.size)
        owner |= dealt if worth else {group: held[group] for group in chosen}
    leaving = [completion for completion in completions if owner[completion.group] != world.rank]
    staying = [completion for completion in completions if owner[completion.group] == world.rank]
    if owner == held:
        return completions
    coming = [c for part in world.gather(leaving) for c in part if owner[c.group] == world.rank]
    return sorted(staying + coming, key=lambda completion: completion.index)


def costs(completions: Sequence[Completion]) -> dict[int, int]:
    """Return the tokens of each group: its prompt once and its completions."""
    found: dict[int, int] = {}
    for completion in completions:
        before = found.get(completion.group, len(completion.tokens.prompt))
        found[completion.group] = before + len(completion.tokens.completion)
    return found


def deal(tokens: Mapping[int, int], held: Mapping[int, int], processes: int) -> dict[int, int]:
    """Return {group: process}: the largest group first, each to the process with the least so far.

    At most 4/3 of the best possible (Graham 1969). Of equals the present holder is chosen, so that less travels.
    """
    load, owner = [0] * processes, dict[int, int]()
    for group in sorted(tokens, key=lambda group: (-tokens[group], group)):
        rank = min(range(processes), key=lambda rank: (load[rank], rank != held[group], rank))
        owner[group] = rank
        load[rank] += tokens[group]
    return owner


def fullest(tokens: Mapping[int, int], owner: Mapping[int, int], processes: int) -> int:
    """Return the tokens of the process that has most."""
    return max(sum(cost for group, cost in tokens.items() if owner[group] == rank) for rank in range(processes))
