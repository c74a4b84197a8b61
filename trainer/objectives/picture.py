"""picture: what an objective does to a token, as a function of its probability, its entropy and the answer's reward.

The objective itself is run, `prepare` and `apply`, on one made-up optimiser step whose tokens cover a grid of true
softmax distributions (softmax_grid.py). Nothing here knows a method.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainer.batch import TokenBatch
from trainer.lazy import torch
from trainer.objectives.base import ObjectivePart, Step
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.objective import Objective
from trainer.objectives.preview import changes
from trainer.objectives.softmax_grid import VOCABULARY, Grid, before, by_entropy, by_ratio, entropy_of
from trainer.part import Settings, setting
from trainer.statistics import STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.objectives.base import Outcome

SAMPLES = 8  # completions of a group, and completions that hold a kind of token
REPEATS = 2  # tokens of a completion whose tokens are all alike
STEPS = 100
MARKS = ("planning", "trigger", "off_policy")
EXACT = ("correct", "answer", "trajectory", "turn", "task", "hellinger")  # what the made-up step itself decides
DIRECTIONS = 8  # of made-up vectors
ANSWERS = ("reward_shaper", "normaliser", "sequence_multiplier")  # stages that weigh whole answers


class Scene(Settings):
    """The made-up step that an objective's picture is taken of."""

    across: Literal["probability", "ratio"] = setting(
        "probability",
        help="Probability and entropy of the token, or how far it has moved since it was drawn, and its probability.",
    )
    log_ratio: float = setting(
        0.0,
        title="Log ratio",
        help="How much likelier the token is now than when it was drawn.",
        unit="nats",
        ge=-1,
        le=1,
        show_if={"across": "probability"},
    )
    right: float = setting(
        0.5, title="Right answers", help="Share of the group's answers with reward 1.", ge=0.125, le=0.875
    )
    progress: float = setting(0.0, title="Progress", help="Share of the run that is done, for schedules.", ge=0, le=1)
    layout: Literal["mixed", "alike"] = setting(
        "mixed",
        title="An answer is",
        help="Tokens of all kinds, or tokens of one kind: then a field of the picture stands for a whole answer.",
    )
    marked: bool = setting(False, title="Marked tokens", help="Tokens carry the mark the objective looks for.")


@dataclass(frozen=True)
class Stage:
    """The made-up step: its batch, and which field of the grid each token and which side each completion is on."""

    batch: TokenBatch
    field: Tensor  # [N] index into the grid
    right: Tensor  # [S] bool


def natural_scene(config: ObjectiveConfig) -> Scene:
    """Return the scene in which an objective shows most, judged by what its own parts read and where they act."""
    own = changes(config)
    return Scene(
        across="probability" if any(map(_shapes, own)) else "ratio",
        layout="alike" if any(map(_weighs_answers, own)) else "mixed",
        marked=any(part.reads().intersection(MARKS) for part in own),
    )


def _of_distribution(part: ObjectivePart) -> bool:
    """Return whether a part reads more of a token's distribution than how it has moved."""
    read = (STATISTICS[name] for name in part.reads() - {"old_logprob"})
    return any(info.supplier == "head" and not info.width for info in read)


def _compares(part: ObjectivePart) -> bool:
    """Return whether a part compares policies, so that nothing shows before a token has moved."""
    others = any(STATISTICS[name].policy in ("reference", "teacher") for name in part.reads())
    return others or part.reads() >= {"entropy", "old_entropy"}


def _shapes(part: ObjectivePart) -> bool:
    """Return whether a part treats tokens differently by their probability or entropy."""
    acts = part.stage in ("token_shaper", "token_weight", "token_mask")
    weighs = part.stage in ("regulariser", *ANSWERS) and _of_distribution(part)
    return (acts or weighs) and not _compares(part)


def _weighs_answers(part: ObjectivePart) -> bool:
    """Return whether a part makes one number of each answer's tokens."""
    if part.stage == "surrogate":
        return part.domain == "completion"
    grouped = part.stage == "token_shaper" and part.domain == "group"
    return _of_distribution(part) and (grouped or part.stage in ("reward_shaper", "normaliser", "sequence_multiplier"))


def picture(objective: ObjectiveConfig, scene: Scene) -> dict[str, Any]:
    """Return what an objective does on a scene, for right and for wrong answers, one number for each field.

    `views` holds `weight` (-dL/dlogprob times the token's denominator), `entropy_weight` (the same of entropy, where
    the objective has such a gradient) and `entropy_change` (first order, of a step of size 1 on the token's own
    logits). `across` and `up` are the axes, `fields` the (column, row) that exist. Raises ConfigError where the
    objective lacks a statistic.
    """
    machine = Objective(objective)
    ground = by_entropy(scene.log_ratio) if scene.across == "probability" else by_ratio()
    stage = stage_of(machine, ground, scene)
    step = Step(
        step=round(scene.progress * STEPS),
        total_steps=STEPS,
        max_completion_tokens=4 * int(stage.batch.length[0]),
        vocabulary=VOCABULARY,
    )
    outcome = machine.apply(machine.prepare(stage.batch, step), step)
    views = {"weight": outcome.weight}
    if outcome.grad_entropy is not None:
        views["entropy_weight"] = -outcome.grad_entropy * len(stage.field)
    sides = {name: _sides(values, stage, len(ground.column)) for name, values in views.items()}
    sides["entropy_change"] = entropy_change(machine, ground, stage, outcome)
    advantage = _sides(outcome.advantage, stage, len(ground.column))
    return {
        "across": asdict(ground.across),
        "up": asdict(ground.up),
        "fields": torch.stack([ground.column, ground.row], 1).tolist(),
        "views": {name: {side: _listed(values) for side, values in both.items()} for name, both in sides.items()},
        "advantage": {side: float(values.mean()) for side, values in advantage.items()},
        "metrics": {name: value for name, value in outcome.metrics.items() if name != "objective/loss"},
        "stand_ins": sorted(filter(_stands_in, machine.needs)),
    }


def stage_of(machine: Objective, ground: Grid, scene: Scene) -> Stage:
    """Return groups of completions over the grid, with every statistic the objective reads."""
    rights = max(1, min(SAMPLES - 1, round(scene.right * SAMPLES)))
    field, length = _mixed(len(ground.column)) if scene.layout == "mixed" else _alike(len(ground.column), rights)
    sequences = len(field) // length
    right = torch.arange(sequences) % SAMPLES < rights
    now, drawn = statistics_of(ground.logp), statistics_of(before(ground))
    batch = TokenBatch(
        logprob=now["logprob"][field],
        entropy=now["entropy"][field],
        sum_p2=now["sum_p2"][field],
        sum_p2_logp=now["sum_p2_logp"][field],
        old_logprob=drawn["logprob"][field],
        old_entropy=drawn["entropy"][field],
        engine_logprob=drawn["logprob"][field],
        ref_logprob=drawn["logprob"][field],
        sequence=torch.arange(sequences).repeat_interleave(length),
        position=torch.arange(length).repeat(sequences),
        group=torch.arange(sequences) // SAMPLES,
        reward=right.double(),
        length=torch.full((sequences,), length),
        truncated=torch.zeros(sequences, dtype=torch.bool),
    )
    extra = {
        name: _extra(name, machine, ground, batch, scene, field, right)
        for name in machine.needs
        if not STATISTICS[name].core
    }
    return Stage(batch.replace(extra=extra), field, right)


def _mixed(kinds: int) -> tuple[Tensor, int]:
    """Return the field of each token of one group, [N], each completion one of every kind in an order of its own."""
    dice = torch.Generator().manual_seed(0)
    return torch.cat([torch.randperm(kinds, generator=dice) for _ in range(SAMPLES)]), kinds


def _alike(kinds: int, rights: int) -> tuple[Tensor, int]:
    """Return the field of each token, [N], each completion REPEATS tokens of one kind; groups are dealt by lot.

    Every kind has as many right and as many wrong completions as a group has.
    """
    dice = torch.Generator().manual_seed(0)
    dealt = [
        (torch.randperm(kinds * count, generator=dice) % kinds).view(kinds, count)
        for count in (rights, SAMPLES - rights)
    ]
    return torch.cat(dealt, 1).flatten().repeat_interleave(REPEATS), REPEATS


def statistics_of(logp: Tensor) -> dict[str, Tensor]:
    """Return the core statistics of the sampled token of each distribution, [K]."""
    p, finite = logp.exp(), logp.clamp(min=-1e4)
    return {
        "logprob": logp[:, 0],
        "entropy": entropy_of(logp).round(decimals=8),  # a row is one level: quantiles must see ties
        "sum_p2": p.square().sum(-1),
        "sum_p2_logp": (p.square() * finite).sum(-1),
    }


def rare_of(name: str, logp: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a rarer statistic of each distribution, [K], by the trainer's own code; log-probs serve as logits."""
    from trainer.kernels.definitions import EXTRAS  # here: the web app reads Scene and must not load torch

    sampled = torch.zeros(len(logp), dtype=torch.long)
    return EXTRAS[name](logp, sampled, torch.ones((), dtype=logp.dtype), options)


def _extra(
    name: str, machine: Objective, ground: Grid, batch: TokenBatch, scene: Scene, field: Tensor, right: Tensor
) -> Tensor:
    """Return a statistic outside TokenBatch: of the distributions, of the rewards, or a stand-in that says nothing."""
    info, tokens, sequences = STATISTICS[name], len(field), len(right)
    if info.width:
        dice = torch.Generator().manual_seed(1)
        vectors = torch.randn(sequences, DIRECTIONS, generator=dice, dtype=torch.float64)
        return vectors / vectors.norm(dim=1, keepdim=True)
    if name == "hellinger":
        return (1 - ((ground.logp + before(ground)) / 2).exp().sum(1))[field]
    if info.supplier == "head":
        logp = ground.logp if info.policy == "current" else before(ground)
        return rare_of(name, logp, machine.options())[field]
    if name in MARKS:
        return torch.full((tokens,), float(scene.marked), dtype=torch.float64)
    if name in ("correct", "answer"):  # right answers agree; wrong ones are all different
        wrong = torch.arange(1, sequences + 1) * float(name == "answer")
        return torch.where(right, float(name == "correct"), wrong.double())
    if name == "trajectory":
        return torch.arange(sequences, dtype=torch.float64)
    if name == "think_end":
        return torch.full((sequences,), -1.0, dtype=torch.float64)
    if name == "teacher_logprob":
        return batch.need("old_logprob")
    return torch.zeros(tokens if info.domain == "token" else sequences, dtype=torch.float64)


def _stands_in(name: str) -> bool:
    """Return whether a statistic is neither of the grid's distributions nor of the made-up step."""
    info = STATISTICS[name]
    of_grid = info.core or (info.supplier == "head" and not info.width)
    return not of_grid and name not in (*MARKS, *EXACT)


def entropy_change(machine: Objective, ground: Grid, stage: Stage, outcome: Outcome) -> dict[str, Tensor]:
    """Return the first-order change of each field's entropy, in nats, [K] for right and for wrong answers.

    The step is one of gradient descent with rate 1 on the logits of the token alone, the loss taken times the number
    of tokens; every gradient counts that the loop would carry through the model.
    """
    found = {}
    gradients = {"logprob": outcome.grad_logprob, "entropy": outcome.grad_entropy, **outcome.grad_extra}
    carried = {
        name: _sides(value * len(stage.field), stage, len(ground.column))
        for name, value in gradients.items()
        if value is not None and STATISTICS[name].domain == "token"
    }
    for side in ("right", "wrong"):
        logits = ground.logp.detach().clone().requires_grad_()
        logp = torch.log_softmax(logits, -1)
        known = {"logprob": logp[:, 0], "entropy": entropy_of(logp)}
        loss = logits.sum() * 0
        for name, both in carried.items():
            value = known[name] if name in known else _carried(name, machine, logp)
            loss = loss + (both[side] * value).sum()
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (rise,) = torch.autograd.grad(known["entropy"].sum(), logits)
        found[side] = -(slope * rise).sum(-1)
    return found


def _carried(name: str, machine: Objective, logp: Tensor) -> Tensor:
    """Return a differentiable statistic of the head, [K]; 0 for one that only has a stand-in."""
    return rare_of(name, logp, machine.options()) if STATISTICS[name].supplier == "head" else torch.zeros(len(logp))


def _sides(values: Tensor, stage: Stage, kinds: int) -> dict[str, Tensor]:
    """Return the mean of [N] values over the copies of each field, [K], on either side."""
    right = stage.batch.per_token(stage.right)
    found = {}
    for side, chosen in (("right", right), ("wrong", ~right)):
        count = torch.bincount(stage.field[chosen], minlength=kinds)
        total = values.new_zeros(kinds).index_add(0, stage.field[chosen], values[chosen].double())
        found[side] = total / count
    return found


def _listed(values: Tensor) -> list[float | None]:
    """Return numbers with 5 digits for JSON, None for what is no number."""
    return [
        float(f"{value:.5g}") if value == value and abs(value) != float("inf") else None for value in values.tolist()
    ]
