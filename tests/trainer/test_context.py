"""Tokens that do not count: the model reads them and nothing else does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.trainer.gradients import Recording, completions, config, models
from trainer.completion import Completion
from trainer.distributed import World
from trainer.objectives import Objective, Step
from trainer.packed import PackedRow
from trainer.policy import Policy, Trajectory
from trainer.rectangles import rooted
from trainer.scoring import Scorer
from trainer.text_statistics import completion_facts, token_statistics
from trainer.update import Update, Updater

CLOSE = 1e-6


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return models(World(cpu=True))


@pytest.fixture
def seed():
    number = random.randrange(1 << 30)
    print("seed", number)
    return number


def forked(made: list[Completion]) -> list[Completion]:
    """Return the completions without context of their own, most with a beginning that does not count."""
    for completion in made:
        tokens = completion.tokens
        at = completion.index % 4 if len(tokens.completion) > completion.index % 4 else 0
        counts = (False,) * at + (True,) * (len(tokens.completion) - at) if at else ()
        completion.tokens = Trajectory(tokens.prompt, tokens.completion, counts)
    return made


def asked(completion: Completion) -> Completion:
    """Return a completion whose beginning that does not count stands in its prompt instead."""
    tokens = completion.tokens
    at = len(tokens.completion) - tokens.learned
    return replace(
        completion,
        tokens=Trajectory(tokens.prompt + tokens.completion[:at], tokens.completion[at:]),
        engine_logprob=completion.engine_logprob[at:],
    )


def update(pair, preset: str, made: list[Completion], *, minibatches: int = 2, budget: int = 64):
    """Return the gradients of a step and what became of it; the weights are put back."""
    policy, reference = pair
    before = [parameter.detach().clone() for parameter in policy.parameters]
    policy.budget = reference.budget = budget
    world = World(cpu=True)
    objective, optimiser = Objective(config(preset).objective), Recording(policy.parameters, world)
    updater = Updater(policy, reference, objective, optimiser, world)  # type: ignore[arg-type]
    knobs = {name: knob.value for name, knob in objective.knobs().items()}
    now = Step(knobs=knobs, step=4, total_steps=10, seed=1, max_completion_tokens=10)
    found: Update = updater.update(made, now, minibatches, 1.0, {})
    assert not found.problems
    with torch.no_grad():
        for parameter, value in zip(policy.parameters, before, strict=True):
            parameter.copy_(value)
    return torch.cat(optimiser.seen), found


@pytest.mark.parametrize("preset", ["grpo", "cispo", "gspo", "clip-cov", "kl-cov", "entropy-bonus", "siren", "lp-reg"])
def test_a_prefix_that_does_not_count_is_as_good_as_a_longer_prompt(pair, preset, seed):
    made = forked(completions(pair[0], seed))
    ours, one = update(pair, preset, made)
    theirs, other = update(pair, preset, [asked(completion) for completion in made], budget=1 << 20)
    assert bool(ours.any())
    assert float((ours - theirs).abs().max()) < CLOSE * max(1.0, float(theirs.abs().max()))
    for name in ("old_logprob", "old_entropy", "sequence", "reward"):
        torch.testing.assert_close(getattr(one.batch, name), getattr(other.batch, name), rtol=0, atol=CLOSE)
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=CLOSE)


def test_a_penalty_of_length_sees_the_whole_completion(pair, seed):
    """The limit of tokens holds for prefix and continuation together, so does what is said of nearing it."""
    made = completions(pair[0], seed)
    made[1].tokens, made[1].engine_logprob = Trajectory(made[1].tokens.prompt, (5,) * 10), [-1.0] * 10  # at the limit
    whole = [replace(c, tokens=Trajectory(c.tokens.prompt, c.tokens.completion)) for c in made]
    _, ours = update(pair, "dapo", forked(made))
    _, plain = update(pair, "dapo", whole)
    assert torch.equal(ours.batch.reward, plain.batch.reward)
    assert not torch.equal(ours.batch.reward, update(pair, "grpo", whole)[1].batch.reward)  # it is penalised


def spoken_over(policy: Policy, seed: int) -> list[Trajectory]:
    """Return completions in which tools speak: in the middle, at the end, throughout, twice, or not at all."""
    dice, on, off = random.Random(seed), True, False
    flags = [(on, on, off, off, on, on), (on, off), (off, off), (off, on, off, on, off), (), (on, on, on)]
    prompts = [tuple(dice.choices(range(3, policy.vocabulary), k=size)) for size in (5, 3)]
    made = []
    for place, counts in enumerate(flags):
        ids = tuple(dice.choices(range(3, policy.vocabulary), k=len(counts) or 4))
        made.append(Trajectory(prompts[place % 2], ids, counts))
    return made


def by_hand(policy: Policy, rows: list[Trajectory], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-prob and entropy of the tokens that count from the model's own logits, one row at a time."""
    logprob, entropy = [], []
    for row in rows:
        logits = policy.lm(torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)
        for place, token in enumerate(row.completion):
            if not row.counts or row.counts[place]:
                logprob.append(logp[place, token])
                entropy.append(-(logp[place].exp() * logp[place]).sum())
    return torch.stack(logprob), torch.stack(entropy)


@pytest.mark.parametrize("budget", [1 << 20, 16, 1])
def test_what_a_tool_said_takes_part_in_nothing_but_the_models_reading(pair, budget, seed):
    policy, rows = pair[0], spoken_over(pair[0], seed)
    policy.budget = budget
    wanted_logprob, wanted_entropy = by_hand(policy, rows, 1.3)
    scores = policy.score(rows, 1.3)
    torch.testing.assert_close(scores["logprob"].double(), wanted_logprob.detach(), rtol=0, atol=CLOSE)
    torch.testing.assert_close(scores["entropy"].double(), wanted_entropy.detach(), rtol=0, atol=CLOSE)

    dice = torch.Generator().manual_seed(seed)
    slopes = torch.randn(2, len(wanted_logprob), generator=dice)

    def clear() -> None:
        policy.lm.zero_grad(set_to_none=True)

    clear()
    met = policy.backward(rows, 1.3, slopes[0], slopes[1], clear)
    ours = [parameter.grad.clone() for parameter in policy.parameters]
    clear()
    (slopes[0] * wanted_logprob + slopes[1] * wanted_entropy).sum().backward()
    for parameter, grad in zip(policy.parameters, ours, strict=True):
        assert float((grad - parameter.grad).abs().max()) < CLOSE * max(1.0, float(parameter.grad.abs().max()))
    clear()
    torch.testing.assert_close(met["logprob"], scores["logprob"])


def test_what_forks_begin_with_runs_once_for_all_of_them_where_that_saves_tokens(pair, seed):
    policy, dice = pair[0], random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(dice.choices(range(3, policy.vocabulary), k=count))

    prompt, root = ids(4), ids(12)
    forks = [Trajectory(prompt, root[:9] + ids(3), (False,) * 9 + (True,) * 3) for _ in range(3)]
    spoken = Trajectory(prompt, root[:9] + ids(4), (False,) * 9 + (True, False, True, True))
    lone = Trajectory(prompt, root[:2] + ids(5), (False,) * 2 + (True,) * 5)
    rows = [Trajectory(prompt, root), *forks, spoken, lone, Trajectory(prompt, root[:9], (False,) * 9)]
    found = rooted(rows)
    assert [len(row.prompt) for row in found] == [4, 13, 13, 13, 13, 4, 4]
    assert found[4].counts == (True, False, True, True)
    assert len(PackedRow.of(found[:6])) == len(PackedRow.of(rows[:6])) - 4 * 9 + 9 + 4
    assert [row.learned for row in found] == [row.learned for row in rows]
    for budget in (1 << 20, 1):
        policy.budget = budget
        scores = policy.score(rows, 0.8)
        logprob, entropy = by_hand(policy, rows, 0.8)
        torch.testing.assert_close(scores["logprob"].double(), logprob.detach(), rtol=0, atol=CLOSE)
        torch.testing.assert_close(scores["entropy"].double(), entropy.detach(), rtol=0, atol=CLOSE)


def test_distances_and_features_leave_context_out(pair, seed):
    (policy, reference), rows = pair, spoken_over(pair[0], seed)
    policy.budget = reference.budget = 32
    bare = [Trajectory(row.prompt, row.completion) for row in rows]
    everywhere = policy.distance(reference, bare, 1.0)
    flags = torch.tensor([flag for row in rows for flag in row.counts or (True,) * len(row.completion)])
    torch.testing.assert_close(policy.distance(reference, rows, 1.0), everywhere[flags])
    features = policy.features(rows, 1.0)
    assert not bool(features[2].any())  # none of its tokens count
    assert bool(features[0].any())
    prefix = Trajectory(rows[0].prompt, rows[0].completion, (False, False, False, True, True, True))
    prompt = Trajectory(rows[0].prompt + rows[0].completion[:3], rows[0].completion[3:])
    torch.testing.assert_close(policy.features([prefix], 1.0), policy.features([prompt], 1.0), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("preset", ["grpo", "entropy-bonus"])
def test_saying_that_all_tokens_count_changes_no_bit(pair, preset, seed):
    made = completions(pair[0], seed)
    for completion in made:
        completion.tokens = Trajectory(completion.tokens.prompt, completion.tokens.completion)
    silent, one = update(pair, preset, made)
    for completion in made:
        ids = completion.tokens.completion
        completion.tokens = Trajectory(completion.tokens.prompt, ids, (True,) * len(ids))
    said, other = update(pair, preset, made)
    assert torch.equal(silent, said)
    assert torch.equal(one.batch.old_logprob, other.batch.old_logprob)


def test_the_batch_holds_the_tokens_that_count_at_their_places_in_the_whole_completion(pair, seed):
    policy, made = pair[0], completions(pair[0], seed)[:4]
    ids = made[0].tokens.completion[:1] * 6
    made[0].tokens = Trajectory(made[0].tokens.prompt, ids, (False, False, True, True, False, True))
    made[0].engine_logprob = [-0.5 - place for place in range(6)]
    made[0].engine_entropy = [float(place) for place in range(6)]
    policy.budget = 1 << 20
    batch, layout = Scorer(policy, None, frozenset(), World(cpu=True)).start(made, 1.0, {})
    mine = batch.sequence == 0
    assert batch.position[mine].tolist() == [2, 3, 5]
    assert batch.length[0] == 6
    assert layout.length[0] == 3
    assert batch.engine_logprob[mine].tolist() == [-2.5, -3.5, -5.5]
    assert batch.tokens == sum(completion.tokens.learned for completion in made)


def test_statistics_of_texts_are_those_of_the_tokens_that_count():
    text = "wait so </think> wait done"
    pieces = [piece + " " for piece in text.split()]
    made = replace(completions_of(pieces), tokens=Trajectory((1,), tuple(range(5)), (False, True, False, True, True)))
    options = {"triggers": ["wait"], "delimiter": "</think>"}
    assert token_statistics(["trigger"], [made], options)[:, 0].tolist() == [0, 1, 0]  # so, wait, done
    assert completion_facts(["think_end"], [made], options).tolist() == [[2.0]]  # a place in the whole completion


def completions_of(pieces: list[str]) -> Completion:
    from trainer.tasks import Row

    starts = [len("".join(pieces[:place]).encode()) for place in range(len(pieces))]
    return Completion(
        index=0, group=0, sample=0, auxiliary=False, row=Row("a", "", ""), tokens=Trajectory((1,), (2,) * len(pieces)),
        engine_logprob=[], finish_reason="stop", text="".join(pieces), offsets=starts,
    )  # fmt: skip


def test_counts_of_another_length_are_refused():
    with pytest.raises(ValueError, match="counts speaks of 1 tokens, the completion has 2"):
        Trajectory((1,), (2, 3), (True,))
