"""Advantage shaping on cases small enough to work by hand, and what each method promises about signs and means."""

from __future__ import annotations

import math
import random

import pytest
import torch
from pydantic import ValidationError

from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.objectives import PRESETS, ObjectiveConfig, Step

from .batches import DOUBLE, doubles, hand_batch, objective, random_batch, run
from .test_signs import change

E = math.e


def shaped(preset: str, batch: TokenBatch, *parts: dict, **step) -> list[float]:
    """Return the advantage of each token after everything that shapes it."""
    return run(objective(preset, *parts), batch, **step).advantage.tolist()


def four(advantage: list[float] | None = None, **fields) -> TokenBatch:
    """Return four responses of one token in one group; rewards 1, 0, 1, 1."""
    given = None if advantage is None else doubles(*advantage)
    return hand_batch([1] * 4, [1, 0, 1, 1], advantage=given, **fields)


# -- CANON: entropies 0.1 to 0.4, halves (1, 0) and (1, 1) -----------------------------------------------------------

RISING = {"old_entropy": doubles(0.1, 0.2, 0.3, 0.4)}


def canon(batch: TokenBatch, **given) -> list[float]:
    step = {name: given.pop(name) for name in ("step", "knobs") if name in given}
    return shaped("canon", batch, {"type": "canon", **given}, **step)


def test_canon_compares_with_the_other_half() -> None:
    assert canon(four(**RISING)) == pytest.approx([0, -1, 0.5, 0.5])
    assert canon(four(**RISING), mix=0.0) == pytest.approx([0.5, -0.5, 0, 0])
    assert canon(four(**RISING), divisor=2.0) == pytest.approx([0, -0.5, 0.25, 0.25])


def test_an_equal_mixture_of_even_halves_is_dr_grpo() -> None:
    assert canon(four(**RISING), mix=0.5) == pytest.approx(shaped("dr-grpo", four()))


def test_canon_prefers_a_half_by_alpha_and_beta() -> None:
    preferred = {"alpha": 0.8, "beta": 0.1}
    assert canon(four(**RISING), **preferred) == pytest.approx([0.8 - 1 - 0.1, -1.1, 1 - 0.4 + 0.1, 0.7])
    longer = hand_batch([1, 2, 3, 4], [1, 0, 1, 1])
    found = canon(longer, metric="length", **preferred)
    assert [found[place] for place in (0, 1, 3, 6)] == pytest.approx([1 - 0.8 - 0.1, -0.9, 0.8 - 0.5 + 0.1, 0.4])


def test_canon_of_an_odd_group_leaves_the_middle_to_the_upper_half() -> None:
    batch = hand_batch([1] * 3, [1, 0, 1], old_entropy=doubles(3, 2, 1))
    assert canon(batch) == pytest.approx([1 - 1, 0 - 1, 1 - 0.5])


def test_canon_anneals_by_the_mean_reward() -> None:
    inter, intra = canon(four(**RISING)), canon(four(**RISING), mix=0.0)
    expected = [0.25 * a + 0.75 * b for a, b in zip(inter, intra, strict=True)]  # mean reward 0.75
    assert canon(four(**RISING), schedule="accuracy") == pytest.approx(expected)
    swapped = [0.75 * a + 0.25 * b for a, b in zip(inter, intra, strict=True)]
    assert canon(four(**RISING), schedule="accuracy", order="intra_first") == pytest.approx(swapped)
    steered = canon(four(**RISING), schedule="accuracy", knobs={"canon_mix": 0.0})
    assert steered == pytest.approx(intra)  # a person's hand goes before the schedule


@pytest.mark.parametrize(("step", "mix"), [(0, 0.02), (29, 0.6), (30, 0.6), (50, 0.3), (69, 0.0009), (70, 0.6)])
def test_canon_follows_cosines_with_restarts(step: int, mix: float) -> None:
    machine = objective("canon", {"type": "canon", "schedule": "cosine"})
    assert run(machine, four(**RISING), step=step).metrics["objective/canon_mix"] == pytest.approx(mix, abs=1e-4)
    with pytest.raises(ValidationError, match="too short"):
        objective("canon", {"type": "canon", "schedule": "cosine", "length": 30})


def test_canon_of_too_few_to_compare() -> None:
    assert canon(hand_batch([1], [0.5], old_entropy=doubles(1))) == [0.5]  # a group of one is compared with 0
    lone = hand_batch([1] * 3, [1, math.nan, math.nan], old_entropy=doubles(1, 2, 3))
    assert canon(lone) == [0, 0, 0]


def test_the_control_of_canon_cuts_the_group_as_drawn() -> None:
    assert canon(hand_batch([1] * 4, [1, 0, 1, 1]), metric="random") == pytest.approx([0, -1, 0.5, 0.5])


# -- one token, one number ---------------------------------------------------------------------------------------------


def test_exploration_adds_present_entropy_up_to_half_of_the_advantage() -> None:
    batch = four([1, 1, -1, 0], entropy=doubles(1, 5, 5, 3), old_entropy=doubles(9, 9, 9, 9))
    outcome = run(objective("reasoning-with-exploration"), batch)
    assert outcome.weight.tolist() == pytest.approx([1.4, 1.5, -0.5, 0])
    assert outcome.grad_entropy is None  # entropy weighs, it is not differentiated


def test_gtpo_weighs_by_relative_entropy_and_never_turns_round() -> None:
    batch = hand_batch([3, 1], [0, 0], advantage=doubles(1, 1, 1, -2), old_entropy=doubles(0, 1, 2, 0))
    assert shaped("gtpo", batch) == pytest.approx([0.9, 1, 1.1, -2])  # no entropy, no difference
    assert shaped("gtpo", batch, {"type": "gtpo", "beta": 5.0}) == pytest.approx([0, 1, 6, -2])


PLANNING = {"planning": doubles(0, 0, 1, 1)}


def test_sepa_levels_routine_entropy_as_its_ramp_rises() -> None:
    batch = hand_batch([4], [0], advantage=doubles(1, 1, 1, 1), old_entropy=doubles(0, 2, 1, 5), extra=PLANNING)
    parts = {"type": "hicra", "alpha": 0.0}, {"type": "sepa", "beta": 1.0, "ramp": 10}
    assert shaped("sepa", batch, *parts, step=10) == pytest.approx([0.5, 0.5, 0.5, 2.5])
    assert shaped("sepa", batch, *parts, step=5) == pytest.approx([0.25, 0.75, 0.5, 2.5])
    assert shaped("sepa", batch, *parts, step=0) == pytest.approx([0, 1, 0.5, 2.5])


def test_hicra_as_printed_and_as_narrated() -> None:
    batch = four([1, -1, 1, -1], extra=PLANNING)
    assert shaped("hicra", batch) == pytest.approx([1, -1, 1.2, -0.8])
    assert shaped("hicra", batch, {"type": "hicra", "variant": "narrated"}) == pytest.approx([1, -1, 1.2, -1.2])


def test_planning_phrases_go_to_whoever_marks_the_tokens() -> None:
    assert objective("hicra", {"type": "hicra", "phrases": ["let us see"]}).options()["phrases"] == ("let us see",)
    with pytest.raises(ValidationError, match="phrases"):
        objective("sepa", {"type": "hicra", "phrases": ["let us see"]})
    with pytest.raises(ValidationError, match="does not work together with"):
        objective("sepa", {"type": "gtpo"})


def test_dgpo_weighs_by_distance_and_entropy_with_mean_one() -> None:
    level = math.log(100)
    fields = {"old_entropy": doubles(level, level, level / 2, level), "extra": {"hellinger": doubles(0.5, 0, 0.5, 0.3)}}
    batch = hand_batch([3, 1], [0, 0], advantage=doubles(1, 1, 1, -2), **fields)
    scores = [0.5 / 0.5, 0, 0.25 / 0.5]
    total = sum(math.exp(score) for score in scores) / 3
    expected = [math.exp(score) / total for score in scores]
    assert shaped("dgpo", batch, vocabulary=100) == pytest.approx([*expected, -2])
    assert shaped("dgpo", batch, {"type": "dgpo", "vocabulary": 100}, vocabulary=7) == pytest.approx([*expected, -2])
    flat = shaped("dgpo", batch, {"type": "dgpo", "kappa": 0.0}, vocabulary=100)
    assert flat[0] == pytest.approx(flat[2])  # entropy is left out
    assert sum(flat[:3]) == pytest.approx(3)


def test_rlrt_prefers_tokens_of_its_own_in_right_answers() -> None:
    teacher = {"teacher_logprob": doubles(-1, -9, 0, -9)}
    batch = four([1, 1, 1, -1], extra=teacher, old_logprob=doubles(-1, -1, -1, -1))
    assert shaped("rlrt", batch) == pytest.approx([1, 1.1, 0.9, -1])


def test_ces_moves_forks_by_a_bounded_step_towards_zero() -> None:
    entropy = doubles(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    batch = hand_batch(
        [9, 1], [1, 0], advantage=doubles(*[1] * 8, 0.1, -1), old_entropy=entropy, extra={"correct": doubles(1, 0)}
    )
    assert shaped("ces", batch) == pytest.approx([*[1] * 8, 0.05, -0.9])  # 0.9 and 1.0 are the upper fifth
    graded = {"type": "ces", "full": 1.0}
    assert shaped("ces", batch, graded) == pytest.approx([*[1] * 8, 0.05, -0.9])
    halves = {"type": "ces", "full": 1.0, "share": 1.0}
    assert shaped("ces", batch, halves)[0] == pytest.approx(1 - 0.1 * 0.1)


def test_erpo_moves_advantages_inside_a_stretch_and_keeps_the_outcome() -> None:
    entropy = doubles(0.2, 3.0, 0.2, 3.0)
    batch = hand_batch([2, 2], [0, 0], advantage=doubles(1, 1, -1, -1), old_entropy=entropy)
    assert shaped("erpo", batch) == pytest.approx([1, 1, -1, -1])  # each stretch holds equal tokens
    off = 0.2 / math.sqrt(4 / 3)  # two and two: 1 over the unbiased std of +1 +1 -1 -1
    one = {"type": "erpo", "buckets": 1}
    assert shaped("erpo", batch, one) == pytest.approx([1 - off, 1 + off, off - 1, -1 - off], rel=1e-4)
    strong = {"type": "erpo", "buckets": 1, "eta": 9.0}
    assert shaped("erpo", batch, strong) == pytest.approx([0.5, 1.5, -0.5, -1.5])


# -- one response, one number ------------------------------------------------------------------------------------------


def test_empg_of_single_turns_weighs_by_confidence_and_centres() -> None:
    batch = hand_batch([1] * 2, [0, 0], advantage=doubles(1, -1), old_entropy=doubles(0.5, 2.5))
    mean = (1 + 1 / E) / 2
    expected = [1 / mean, -1 / E / mean]
    shift = sum(expected) / 2
    assert shaped("empg", batch) == pytest.approx([value - shift for value in expected])


def test_empg_gives_a_step_a_bonus_for_the_clarity_of_the_next() -> None:
    extra = {"trajectory": doubles(7, 3, 7, 3), "turn": doubles(0, 1, 1, 0)}
    batch = four([0, 0, 0, 0], old_entropy=doubles(1, 0, 1, 0), extra=extra)
    found = shaped("empg", batch)
    bonus = [0.05 / E, 0, 0, 0.05]  # trajectory 7 leads to an unsure step, 3 to a clear one
    assert found == pytest.approx([value - sum(bonus) / 4 for value in bonus])


def test_empg_ignores_steps_that_do_not_count() -> None:
    fields = {"advantage": doubles(1, -1, 5), "old_entropy": doubles(0.5, 2.5, 99)}
    full = hand_batch([1] * 3, [0, 0, math.nan], **fields)
    two = hand_batch([1] * 2, [0, 0], advantage=doubles(1, -1), old_entropy=doubles(0.5, 2.5))
    assert shaped("empg", full)[:2] == pytest.approx(shaped("empg", two))


def certain(*level: float) -> dict[str, torch.Tensor]:
    zeros = torch.zeros(len(level), dtype=DOUBLE)
    return {"logsumexp": doubles(*level), "mean_logit": zeros, "token_logit": zeros}


NO_PENALTY = {"type": "ucas_logit_penalty", "penalty": 0.0}


def test_ucas_punishes_sure_and_wrong_and_rewards_unsure_and_right() -> None:
    batch = hand_batch([1] * 4, [0] * 4, advantage=doubles(1, 1, -1, -1), extra=certain(1, 3, 1, 3))
    z = 1 / math.sqrt(4 / 3)
    expected = [math.exp(0.25 * z), math.exp(-0.25 * z), -math.exp(-0.35 * z), -math.exp(0.35 * z)]
    assert shaped("ucas", batch, NO_PENALTY) == pytest.approx(expected, rel=1e-5)


def test_ucas_described_ignores_length_and_released_does_not() -> None:
    batch = hand_batch([1, 3], [0, 0], advantage=doubles(1, 1, 1, 1), extra=certain(2, 2, 2, 2))
    assert shaped("ucas", batch, NO_PENALTY) == pytest.approx([1] * 4)
    released = {"type": "ucas_certainty", "variant": "released"}
    z = math.sqrt(0.5)
    found = shaped("ucas", batch, NO_PENALTY, released)
    assert found == pytest.approx([math.exp(0.25 * z), *[math.exp(-0.25 * z)] * 3], rel=1e-5)


def test_ucas_logit_penalty_stops_at_zero_and_reaches_equal_rewards() -> None:
    extra = {**certain(1, 1, 1, 1), "token_logit": doubles(-1, 0, 1, 1)}
    batch = hand_batch([1] * 4, [0] * 4, advantage=doubles(1, 0, 0.02, -1), extra=extra)
    found = shaped("ucas", batch)
    assert found == pytest.approx([1, -0.025, 0, -1.05], abs=1e-6)
    level = batch.replace(extra=certain(1, 1, 1, 1))  # logits that tell nothing apart cost half
    assert shaped("ucas", level) == pytest.approx([0.975, -0.025, 0, -1.025])


def test_ucas_without_std_stays_finite_on_long_responses() -> None:
    batch = hand_batch([4000, 1], [0, 0], advantage=torch.ones(4001, dtype=DOUBLE), extra=certain(*[9.0] * 4001))
    wild = {"type": "ucas_certainty", "variant": "released", "std": False}
    assert all(map(math.isfinite, shaped("ucas", batch, wild)))


def semantic(answers: list[float], **given) -> float:
    """Return the factor on the advantages of a group with these answers."""
    batch = hand_batch([1] * len(answers), [0] * len(answers), extra={"answer": doubles(*answers)})
    batch = batch.replace(advantage=torch.ones(len(answers), dtype=DOUBLE), old_logprob=given.pop("logprob", None))
    found = shaped("seed-grpo", batch, {"type": "semantic_entropy", "alpha": 1.0, **given})
    assert found == pytest.approx([found[0]] * len(found))
    return found[0]


def test_semantic_entropy_takes_the_update_from_groups_that_disagree() -> None:
    assert semantic([0, 0, 0, 0]) == 1
    assert semantic([0, 1, 2, 3]) == pytest.approx(0)
    shares = -(math.log(3 / 4) + math.log(1 / 4)) / 2 / math.log(4)
    assert semantic([0, 0, 0, 1]) == pytest.approx(1 - shares)
    assert semantic([0, 0, 0, 1], form="exp") == pytest.approx(math.exp(-shares))
    assert semantic([0, 0, 0, 1], form="focal", gamma=2.0) == pytest.approx((1 - shares) ** 2)
    shannon = -(0.75 * math.log(3 / 4) + 0.25 * math.log(1 / 4)) / math.log(4)
    assert semantic([0, 0, 0, 1], average="shannon") == pytest.approx(1 - shannon)
    assert semantic([-1, -1, 0, 0]) == pytest.approx(semantic([0, 0, 1, 1]))  # no answer is one more answer
    assert semantic([5]) == 1


def test_semantic_entropy_is_cut_at_its_maximum() -> None:
    # -log p averaged over clusters passes log G where clusters are uneven
    assert semantic([0] * 19 + [1], form="exp") > 1 / E
    assert semantic([0] * 7 + [1], form="linear") >= 0


def test_semantic_entropy_by_likelihood() -> None:
    likely = doubles(math.log(0.6), math.log(0.1), math.log(0.3))
    shares = -(math.log(0.7) + math.log(0.3)) / 2 / math.log(3)
    assert semantic([0, 0, 1], probability="likelihood", logprob=likely) == pytest.approx(1 - shares)
    impossible = semantic([0, 0, 1], probability="likelihood", logprob=doubles(0, 0, -1e6))
    assert 0 <= impossible <= 1


def test_aem_weighs_confident_responses_more_with_mean_one() -> None:
    batch = four([1, -1, 1, -1], old_entropy=doubles(1, 1, 3, 3))
    mean = (1 + 1 / E) / 2
    assert shaped("aem", batch) == pytest.approx([1 / mean, -1 / mean, 1 / E / mean, -1 / E / mean])
    assert shaped("aem", four([1, -1, 1, -1], old_entropy=doubles(2, 2, 2, 2))) == pytest.approx([1, -1, 1, -1])


def test_aem_by_surprisal_reads_log_probs_alone() -> None:
    batch = hand_batch([2, 1], [0, 0], advantage=doubles(1, 1, 1), old_logprob=doubles(-1, -3, -5))
    mean = (1 + 1 / E) / 2
    part = {"type": "aem", "uncertainty": "surprisal"}
    assert shaped("aem", batch, part) == pytest.approx([1 / mean, 1 / mean, 1 / E / mean])
    assert "old_entropy" not in objective("aem", part).needs


def test_ear_doubles_calm_responses_and_floors_lively_ones() -> None:
    batch = hand_batch([1] * 3, [0] * 3, advantage=doubles(1, 1, -3), old_entropy=doubles(0, 0, 3))
    assert shaped("ettrl-ear", batch) == pytest.approx([2, 2, 0])
    assert shaped("ettrl-ear", batch, {"type": "ear", "floor": -10}) == pytest.approx([2, 2, 3])
    clip = {"type": "ear", "form": "clip", "bound": 0.5}
    assert shaped("ettrl-ear", batch, clip) == pytest.approx([0.5, 0.5, -0.5])
    assert "old_entropy" not in objective("ettrl-ear", clip).needs


def test_edge_divides_by_relative_entropy_within_its_limit() -> None:
    batch = hand_batch([1] * 3, [0] * 3, [0, 1, 2], advantage=doubles(1, 1, -1), old_entropy=doubles(1, 2, 0))
    assert shaped("edge-grpo", batch) == pytest.approx([1, 0.5, -10])
    calm = batch.replace(old_entropy=doubles(0, 0, 0))
    assert shaped("edge-grpo", calm) == [1, 1, -1]


def test_maxrl_divides_by_the_success_rate() -> None:
    batch = hand_batch([1] * 7, [1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1, 2])
    assert shaped("maxrl", batch) == pytest.approx([3, -1, -1, -1, 0, 0, 0], rel=1e-5)
    negative = hand_batch([1] * 2, [-1, 0])  # a mean that is not positive would turn the signs round
    assert shaped("maxrl", negative) == [0, 0]


# -- rewards for being different ---------------------------------------------------------------------------------------

CLIP = {"type": "group_norm", "std": "none"}


def reward(preset: str, batch: TokenBatch, *parts: dict, **step) -> list[float]:
    return objective(preset, CLIP, *parts).prepare(batch, Step(**step)).reward.tolist()


def vectors(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def test_g2rl_rewards_the_odd_gradient_out() -> None:
    feature = vectors([1, 0], [2, 0], [0, 3])
    batch = hand_batch([1] * 3, [1, 1, 1], extra={"gradient_feature": feature})
    assert reward("g2rl", batch) == pytest.approx([1, 1, 1.5])
    wrong = hand_batch([1] * 3, [1, 1, -1], extra={"gradient_feature": feature})
    assert reward("g2rl", wrong)[2] == pytest.approx(-0.5)  # as printed, novelty softens the penalty
    assert reward("g2rl", wrong, {"type": "g2rl", "variant": "narrated"})[2] == pytest.approx(-1.5)
    large = {"type": "g2rl", "weight": 9.0}
    assert reward("g2rl", batch, large)[2] == 3
    alike = hand_batch([1] * 3, [1, 1, -1], extra={"gradient_feature": vectors([1, 1], [1, 1], [1, 1])})
    assert reward("g2rl", alike) == pytest.approx([1, 1, -1])


def different() -> TokenBatch:
    """Return two right answers and a wrong one; embeddings at right angles, a third of the formulas new."""
    extra = {
        "embedding": vectors([1, 0, 0], [0, 1, 0], [0, 0, 1]),
        "formula_novelty": doubles(0, 0.3, 0.3),
        "correct": doubles(1, 1, 0),
    }
    return hand_batch([1] * 3, [1, 1, 0], extra=extra, logprob=doubles(-1, -2, -3))


def test_dsdr_rewards_unlike_right_answers() -> None:
    part = {"type": "dsdr_reward", "weight": 0.1}
    assert reward("dsdr", different(), part) == pytest.approx([1 + 0.1 * 0.25, 1 + 0.1 * 0.4, 0])
    assert reward("dsdr", different(), part | {"ceiling": 0.3}) == pytest.approx([1.025, 1.03, 0])


def test_dsdr_keeps_right_answers_open_by_their_share() -> None:
    quiet = different().replace(advantage=doubles(0, 0, 0))
    outcome = run(objective("dsdr", {"type": "dsdr_local", "coefficient": 1.0, "temperature": 2.0}), quiet)
    share = 1 / (1 + math.exp(2 * (0.4 - 0.25)))
    assert float(outcome.loss) == pytest.approx(-(share * 1 + (1 - share) * 2))
    # through ratio and log-prob: d/dl of -l exp(l - old) is -(1 + l), the loss takes it with the opposite sign
    assert outcome.grad_logprob.tolist() == pytest.approx([share * (1 - 1), (1 - share) * (1 - 2), 0])


def cooperative(embedding: torch.Tensor, rewards: list[float], **fields) -> TokenBatch:
    right = doubles(*[float(value > 0) for value in rewards])
    return hand_batch([1] * len(rewards), rewards, extra={"embedding": embedding, "correct": right}, **fields)


def test_gcpo_pays_what_an_answer_adds() -> None:
    batch = cooperative(vectors([1, 0], [5, 0], [0, 1], [0, 1]), [1, 1, 1, 0])
    twin = math.log(3) / 2  # two alike span log(1 + 2) together
    assert reward("gcpo", batch) == pytest.approx([twin, twin, math.log(2), 0])


def test_gcpo_by_random_orders_shares_the_volume_out_wherever_the_rows_are() -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    size = 9  # too many orders to go through
    embedding = torch.randn(size, 4, generator=generator, dtype=DOUBLE)
    batch = cooperative(embedding, [1.0] * size)
    batch = batch.replace(extra={**batch.extra, "trajectory": torch.arange(size)})
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    volume = float(torch.logdet(torch.eye(size, dtype=DOUBLE) + unit @ unit.T))
    found = reward("gcpo", batch, {"type": "gcpo", "orders": 20}, seed=3)
    assert sum(found) == pytest.approx(volume)
    order = torch.randperm(size, generator=generator)
    moved = batch.replace(extra={name: value[order] for name, value in batch.extra.items()})
    again = reward("gcpo", moved, {"type": "gcpo", "orders": 20}, seed=3)
    assert again == pytest.approx([found[place] for place in order.tolist()])
    other = reward("gcpo", batch, {"type": "gcpo", "orders": 20}, seed=4)
    assert other != pytest.approx(found, rel=1e-9)


def test_gcpo_by_random_orders_comes_near_the_exact_values() -> None:
    embedding = vectors([1, 0], [1, 0.2], [0, 1], [0.7, 0.7], [1, -1])
    exact = reward("gcpo", cooperative(embedding, [1.0] * 5))
    drawn = reward("gcpo", cooperative(embedding, [1.0] * 5), {"type": "gcpo", "orders": 119}, seed=1)
    assert drawn == pytest.approx(exact, abs=0.06)
    assert drawn != pytest.approx(exact, abs=1e-9)


# -- what all of them promise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["edge-grpo", "empg"])
def test_confident_right_answers_cost_more_entropy_and_confident_wrong_ones_give_more(preset: str) -> None:
    assert change(objective(preset), right=True) < change(objective("grpo"), right=True) < 0
    assert change(objective(preset), right=False) > change(objective("grpo"), right=False) > 0


def test_exploration_reinforces_what_was_sampled() -> None:
    """Any positive addition to the advantage makes sampled tokens likelier: first-order entropy falls a little."""
    for right in (True, False):
        assert change(objective("reasoning-with-exploration"), right=right) < change(objective("grpo"), right=right)


def test_maxrl_raises_entropy_more_where_successes_are_rare() -> None:
    assert change(objective("maxrl"), right=False) > change(objective("grpo"), right=False) > 0


SHAPERS = {"token_shaper", "token_weight", "sequence_multiplier"}
STEADY = [
    name
    for name, preset in PRESETS.items()
    if preset.family == "Advantage shaping"
    and not any(part.may_flip for part in ObjectiveConfig(preset=name).parts if part.stage in SHAPERS)
]


@pytest.mark.parametrize("preset", STEADY)
def test_no_advantage_changes_sign_where_a_part_does_not_say_so(preset: str) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(generator)
    before = torch.randn(batch.sequences, generator=generator, dtype=DOUBLE).round()
    outcome = run(objective(preset), batch.replace(advantage=batch.per_token(before)))
    assert bool((outcome.advantage * batch.per_token(before) >= 0).all())
    assert not outcome.advantage[batch.per_token(before) == 0].any()


@pytest.mark.parametrize(
    ("preset", "name"),
    [("canon", "old_entropy"), ("ucas", "mean_logit"), ("seed-grpo", "answer"), ("dgpo", "hellinger"),
     ("rlrt", "teacher_logprob"), ("g2rl", "gradient_feature"), ("gcpo", "embedding"), ("sepa", "planning")],
)  # fmt: skip
def test_a_missing_statistic_is_named(preset: str, name: str) -> None:
    full = random_batch(torch.Generator().manual_seed(1))
    extra = {key: value for key, value in full.extra.items() if key != name}
    batch = full.replace(extra=extra)
    batch = batch.replace(old_entropy=None, entropy=None) if name == "old_entropy" else batch
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        run(objective(preset), batch)
