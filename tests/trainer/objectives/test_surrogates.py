"""Ratio and clip methods on cases small enough to work by hand, and the way each moves entropy on a softmax table."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.objectives import Step, evaluate
from trainer.objectives.surrogates.copo import COPO, answer_entropy
from trainer.objectives.surrogates.echo import EchoClip
from trainer.objectives.surrogates.flexible_clip import FlexibleClip
from trainer.objectives.surrogates.hapo import HAPOClip, relative_entropy
from trainer.statistics import unavailable

from .batches import doubles, hand_batch, objective, run
from .test_signs import entropy_of, sampled, table

LONE = {"type": "group_norm", "std": "none"}  # groups of one: the advantage is the reward


def moved(*tokens: tuple[float, float], lengths: list[int] | None = None, **fields) -> TokenBatch:
    """Return (ratio, advantage) tokens whose policy now has log-prob -1; one a completion unless lengths are given."""
    ratio, advantage = (doubles(*column) for column in zip(*tokens, strict=True))
    lengths = lengths or [1] * len(tokens)
    group = fields.pop("group", list(range(len(lengths))))
    minus = torch.full_like(ratio, -1.0)
    reward = fields.pop("reward", [0.0] * len(lengths))
    fields = {"logprob": minus, "old_logprob": minus - ratio.log(), "advantage": advantage, **fields}
    return hand_batch(lengths, reward, group, **fields)


def weights(preset: str, batch: TokenBatch, *parts: dict, **step) -> list[float]:
    return run(objective(preset, *parts), batch, **step).weight.tolist()


# -- ratio rules ----------------------------------------------------------------------------------------------------


def test_cispo_bounds_the_weight_and_never_the_gradient() -> None:
    batch = moved((1.5, 1), (0.5, 1), (1.1, -1), (0.5, -1))
    assert weights("cispo", batch) == pytest.approx([1.28, 0.8, -1.1, -0.8])
    upper = {"type": "cispo", "sides": "upper"}
    assert weights("cispo", batch, upper) == pytest.approx([1.28, 0.5, -1.1, -0.5])


def test_an_absolute_cap_is_one_more_than_the_upper_end() -> None:
    capped = {"type": "cispo", "sides": "upper", "clip_high": 4.0}
    assert weights("cispo", moved((7, 1), (4, -1)), capped) == pytest.approx([5, -4])


def test_gspo_weighs_and_clips_whole_completions() -> None:
    part = {"type": "gspo", "clip_low": 0.2, "clip_high": 0.2}
    tokens = [(2, 1), (0.5, 1), (4, 1), (1, 1), (1.1, -1), (1.1, -1)]
    batch = moved(*tokens, lengths=[2, 2, 2])  # geometric means 1, 2 and 1.1
    assert weights("gspo", batch, part) == pytest.approx([1, 1, 0, 0, -1.1, -1.1])


def test_sapo_fades_as_the_ratio_leaves_one() -> None:
    gate = [2 / math.cosh(0.5) ** 2, -2 / math.cosh(1.05 / 2) ** 2, 0.5 / math.cosh(0.25) ** 2]
    assert weights("sapo", moved((1, 1), (2, 1), (2, -1), (0.5, 1))) == pytest.approx([1, *gate])


def test_ce_gppo_keeps_a_share_of_the_gradient_beyond_the_clip() -> None:
    batch = moved((1.5, 1), (0.5, -1), (0.5, 1), (12, -1))
    assert weights("ce-gppo", batch) == pytest.approx([1.2, -0.5 * 0.8, 0.5, 0])
    assert weights("ce-gppo", batch, knobs={"beta_high": 0.25, "beta_low": 0.0}) == pytest.approx([0.3, 0, 0.5, 0])
    assert weights("gppo", batch) == pytest.approx([1.2, -0.8, 0.5, 0])


def test_ce_gppo_without_coefficients_has_the_gradient_of_ppo() -> None:
    none = {"type": "ce_gppo", "beta_low": 0.0, "beta_high": 0.0, "dual_clip": 3.0}
    batch = moved((1.5, 1), (0.5, -1), (1.5, -1), (0.9, 1), (4, -1))
    assert weights("ce-gppo", batch, none) == pytest.approx(weights("grpo", batch))


def test_aspo_inverts_the_ratio_of_rewarded_tokens() -> None:
    batch = moved((0.5, 1), (0.2, 1), (1.3, 1), (0.5, -1), (1.5, -1), (4, -1), (2, 0))
    assert weights("aspo", batch) == pytest.approx([2, 3, 0, 0, -1.5, -3, 0])


def test_the_entropy_split_widens_the_clip_of_uncertain_tokens() -> None:
    entropy = doubles(0.1, 0.2, 0.3, 0.4, 2.0)
    batch = moved(*[(1.3, 1)] * 5, lengths=[5], entropy=entropy)
    assert weights("grpo", batch, {"type": "entropy_split_clip"}) == pytest.approx([0, 0, 0, 0, 1.3])
    assert weights("aspo", batch, {"type": "entropy_split_clip"}) == pytest.approx([0, 0, 0, 0, 1 / 1.3])


@pytest.mark.parametrize("preset", ["cispo", "gspo", "sapo", "ce-gppo", "gppo", "aspo"])
def test_an_unmoved_policy_gets_the_plain_advantage(preset: str) -> None:
    batch = moved((1, 1), (1, -2), (1, 0.5)).replace(old_logprob=None)
    assert weights(preset, batch) == pytest.approx([1, -2, 0.5])


# -- flexible clipping ----------------------------------------------------------------------------------------------


def ends(part: FlexibleClip, step: int, **knobs: float) -> list[tuple[float, float]]:
    """Return (low, high) of a certain token and of a token of probability 0 at a step of 10."""
    batch = moved((1, 1), (1, 1)).replace(old_logprob=doubles(0, -1000))
    low, high = part.clip(batch, Step(step=step, total_steps=10, knobs=knobs), doubles(0.2, 0.2), doubles(0.2, 0.2))
    return list(zip(low.tolist(), high.tolist(), strict=True))


UP_CERTAIN, UP_RARE = 1.35 / 1.2 - 1, 0.35
DOWN_CERTAIN, DOWN_RARE = 1 - 0.65 / 0.8, 0.35
COURSES = [
    ("id", 0, [(0.2, UP_CERTAIN), (0.2, UP_RARE)]),
    ("id", 5, [(0.2, 0.2), (0.2, 0.2)]),
    ("id", 10, [(0.2, 0.2), (0.2, 0.2)]),
    ("did", 0, [(0.2, 0.2), (0.2, 0.2)]),
    ("did", 5, [(0.2, UP_CERTAIN), (0.2, UP_RARE)]),
    ("did", 10, [(0.2, UP_CERTAIN), (0.2, UP_RARE)]),
]


@pytest.mark.parametrize(("schedule", "step", "expected"), COURSES)
def test_the_open_end_follows_the_schedule(schedule: str, step: int, expected: list[tuple[float, float]]) -> None:
    for found, pair in zip(ends(FlexibleClip(schedule=schedule), step), expected, strict=True):
        assert found == pytest.approx(pair)


def test_the_lower_end_is_widest_just_past_half_of_the_run() -> None:
    for schedule, upper in (("id", 0.2), ("did", UP_RARE)):
        (certain, rare) = ends(FlexibleClip(schedule=schedule), 6)  # lambda = -0.2: four fifths open
        assert rare == pytest.approx((0.2 + 0.8 * (DOWN_RARE - 0.2), upper))
        assert certain[0] == pytest.approx(0.2 + 0.8 * (DOWN_CERTAIN - 0.2))


def test_oscillation_opens_the_end_the_knob_names() -> None:
    part = FlexibleClip(schedule="od")
    assert ends(part, 3, open_end=1.0)[1] == pytest.approx((0.2, UP_RARE))
    assert ends(part, 3, open_end=0.0)[1] == pytest.approx((DOWN_RARE, 0.2))


def test_oscillation_turns_at_the_floor_and_at_the_falling_ceiling() -> None:
    # floor 0.2, ceiling 1, 0.92, 0.84, 0.76, 0.68, ... of the initial entropy, 1
    history = [1.0, 0.5, 0.15, 0.5, 0.69, 0.5, 0.1, 0.3, 0.3, 0.3]
    inputs = {"log_prob": [[-1.0]], "advantages": [[1.0]], "history": history}
    course = evaluate("flexible-clip-od", inputs)["course"]
    assert [knobs["open_end"] for knobs in course] == [0, 0, 1, 1, 0, 0, 1, 1, 1, 0]


def test_an_empty_clip_of_certain_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise offset"):
        evaluate({"preset": "flexible-clip-id", "parts": [{"type": "flexible_clip", "offset": 0.1}]}, {})


@pytest.mark.parametrize("surrogate", ["sapo", "importance_ratio"])
def test_a_clip_without_a_surrogate_that_clips_is_refused(surrogate: str) -> None:
    with pytest.raises(ConfigError, match="has no clip"):
        evaluate({"preset": "flexible-clip-id", "parts": [{"type": surrogate}]}, {})


# -- HAPO -----------------------------------------------------------------------------------------------------------

LOGS = doubles(-2, -1, 0, 1)  # the 0.8 quantile, nearest, is 0


def test_hapo_spreads_entropy_over_minus_one_to_one_around_the_pivot() -> None:
    batch, part = moved(*[(1, 1)] * 4, entropy=LOGS.exp()), HAPOClip()
    assert relative_entropy(batch, 0.8, "described", part).tolist() == pytest.approx([-1, -0.5, 0, 1])
    assert relative_entropy(batch, 0.8, "released", part).tolist() == pytest.approx([1, 0.5, 0, 1])
    low, high = part.clip(batch, Step(), doubles(0.2, 0.2, 0.2, 0.2), doubles(0.2, 0.2, 0.2, 0.2))
    assert low.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.2])
    assert high.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_hapo_moves_advantage_from_settled_certain_tokens_to_moving_uncertain_ones() -> None:
    entropy = LOGS.exp()
    still = run(objective("hapo"), moved(*[(1, 1)] * 4, entropy=entropy))
    assert still.advantage.tolist() == pytest.approx([0, 0.5, 1, 1])
    # beyond the inner half of the clip: 1.2 for the last token's adapted end of 1.4, 1.1 for the others'
    moving = run(objective("hapo"), moved(*[(1.15, 1)] * 3, (1.25, 1), entropy=entropy))
    assert moving.advantage.tolist() == pytest.approx([1, 1, 1, 2])
    assert moving.weight.tolist() == pytest.approx([1.15, 1.15, 1.15, 2.5])  # 1.25 is inside the adapted clip
    released = ({"type": f"hapo_{name}", "variant": "released"} for name in ("clip", "weight"))
    first = run(objective("hapo", *released), moved(*[(1.25, 1)] * 4, entropy=entropy))
    assert first.advantage.tolist() == pytest.approx([2, 1.5, 1, 2])  # half of 0.4, 0.3, 0.2, 0.4


def test_hapo_averages_rewards_over_tokens_and_falls_back_where_one_stands_out() -> None:
    entropy = torch.ones(44, dtype=torch.float64)
    batch = hand_batch([3, 1, 39, 1], [1, 0, 0, 1], [0, 0, 1, 1], entropy=entropy)
    found = objective("hapo").prepare(batch, Step()).advantage
    std = math.sqrt(0.75 * 0.25)
    half = math.sqrt(0.5)
    assert found[[0, 3, 4, 43]].tolist() == pytest.approx([0.25 / std, -0.75 / std, -half, half], rel=1e-5)


def test_one_entropy_throughout_leaves_hapo_without_effect() -> None:
    batch = moved((1.15, 1), (0.9, -1), entropy=doubles(0.7, 0.7))
    assert weights("hapo", batch) == pytest.approx([1.15, -0.9])


# -- HTPO -----------------------------------------------------------------------------------------------------------


def htpo_batch(*tokens: tuple[float, float], right: list[float], **fields) -> TokenBatch:
    lengths = fields.pop("lengths", [1] * len(tokens))
    fields = {"entropy": torch.ones(len(tokens), dtype=torch.float64), **fields}
    return moved(*tokens, lengths=lengths, group=[0] * len(lengths), extra={"correct": doubles(*right)}, **fields)


def test_htpo_pulls_forking_tokens_of_hard_prompts_back_into_the_range() -> None:
    # a third right: hard; a single token is its completion's high one
    batch = htpo_batch((1.5, 1), (0.5, 1), (1.1, 1), (0.5, -1), (1.5, -1), *[(1, -1)] * 4, right=[1] * 3 + [0] * 6)
    assert weights("htpo", batch)[:5] == pytest.approx([-1.28, 2, 1.1, 0.8, -1.5])
    released = weights("htpo", batch, {"type": "htpo", "variant": "released"})
    assert released[:5] == pytest.approx([-1.28, -2, 1.1, 0.8, -1.5])


def test_htpo_clips_easy_prompts_and_leaves_their_most_uncertain_token_alone() -> None:
    entropy = doubles(*[0.1] * 8, 1, 2, 1)
    ratios = [(1.1, 1)] * 8 + [(1.2, 1), (1.2, 1), (0.5, -1)]  # two of ten tokens are high
    batch = htpo_batch(*ratios, right=[1, 0], lengths=[10, 1], entropy=entropy)
    part = {"type": "htpo", "hard_below": 0.5}
    assert weights("htpo", batch, part) == pytest.approx([1.1] * 8 + [1.2, 0, 0.8])


def test_htpo_stops_the_most_certain_tokens_of_right_answers_to_hard_prompts() -> None:
    batch = htpo_batch(*[(1, 1)] * 5, (1, -1), right=[1, 0], lengths=[5, 1], entropy=doubles(3, 1, 2, 4, 5, 1))
    part = {"type": "htpo", "lowest_share": 0.5}  # two of the four low tokens; strictly below the second: one
    assert weights("htpo", batch, part) == pytest.approx([1, 0, 1, 1, 1, -1])
    assert weights("htpo", batch) == pytest.approx([1, 1, 1, 1, 1, -1])  # one of them: none


# -- agentic AEPO, ECHO ----------------------------------------------------------------------------------------------


def test_agentic_aepo_lifts_uncertain_tokens_and_lets_them_past_the_clip() -> None:
    batch = moved((1, 1), (1.5, 1), (1.5, 1), (0.5, -1), entropy=doubles(1, 0, 2, 1))
    std = math.sqrt(2 / 3)
    factors = [1, 1 - 0.2 / std, 1 + 0.2 / std, -1]
    assert run(objective("agentic-aepo"), batch).advantage.tolist() == pytest.approx(factors)
    for select, kept in (("high", [0, 1.28]), ("low", [1.28, 0]), ("all", [1.28, 1.28])):
        part = {"type": "entropy_kept_clip", "select": select}
        expected = [1, kept[0] * factors[1], kept[1] * factors[2], 0]
        assert weights("agentic-aepo", batch, part) == pytest.approx(expected)


def test_echo_clips_confident_ends_tighter_as_described_and_all_alike_as_released() -> None:
    lengths, top = [3, 2], doubles(0.0, 0.2, 0.2, 0.1, 0.0)
    batch = moved(*[(1, 1)] * 5, lengths=lengths, extra={"top5_prob": top})

    def width(variant: str) -> list[float]:
        low, high = EchoClip(variant=variant, window=2).clip(batch, Step(), batch.logprob, batch.logprob)
        assert torch.equal(low, high)
        return low[[0, 3]].tolist()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert width("described") == pytest.approx([0.05 + 0.15 * sigmoid(0), 0.05 + 0.15 * sigmoid(3)])
    assert width("released") == pytest.approx([0.05 + 0.15 * sigmoid(3.2), 0.05 + 0.15 * sigmoid(3.8)])


def test_echo_lifts_tokens_that_are_uncertain_and_unconfident() -> None:
    entropy, top = doubles(0, 2, 0, 2), doubles(0.2, 0.1, 0.2, 0.1)
    batch = moved(*[(1, 1)] * 4, entropy=entropy, old_entropy=entropy, extra={"top5_prob": top}, group=[0, 0, 1, 1])
    z = math.sqrt(3 / 4)  # of either score
    limited = {"type": "echo_advantage", "limit": 1.5}
    assert run(objective("echo"), batch).advantage.tolist() == pytest.approx([1 - 0.2 * z, 1 + 0.2 * z] * 2, abs=1e-6)
    assert run(objective("echo", limited), batch).advantage.tolist() == pytest.approx([0.85, 1.15] * 2)
    added = {"type": "echo_advantage", "limit": 1.0, "factor": 0.0, "addend": 0.5}
    uneven = batch.replace(group=torch.tensor([0, 1, 1, 1]))
    found = run(objective("echo", added), uneven).advantage.tolist()
    assert found == pytest.approx([1, 1 + 0.5 * 2 / 3, 1 - 0.5 * 4 / 3, 1 + 0.5 * 2 / 3])


# -- blends ----------------------------------------------------------------------------------------------------------


def test_refinements_are_learnt_by_their_shaped_probability() -> None:
    p = 0.1
    batch = moved((1, 1), (1.5, 1), (0.5, 2), (1, -1))
    batch = batch.replace(logprob=doubles(-1, -1, math.log(p), math.log(p)))
    batch = batch.replace(extra={"off_policy": doubles(0, 0, 1, 1)})
    assert weights("critique-grpo", batch) == pytest.approx([1, 0, 2 * 0.25, -0.25])  # p gamma / (p + gamma)^2
    for shape, slope in (("identity", p), ("log", 1), ("identity_log", 1 + p), ("power", 0.5 * math.sqrt(p))):
        part = {"type": "policy_shaping", "shape": shape}
        assert weights("critique-grpo", batch, part)[2:] == pytest.approx([2 * slope, -slope])


def test_a_run_of_critique_grpo_is_refused_for_want_of_refinements() -> None:
    assert [info.name for info in unavailable(objective("critique-grpo").needs)] == ["off_policy"]


def copo_batch() -> TokenBatch:
    """Return two prompts of two: one right together, one split."""
    answers = doubles(0, 0, 0, 1)
    return hand_batch([1] * 4, [1, 1, 1, 0], [0, 0, 1, 1], extra={"answer": answers})


def test_copo_compares_prompts_where_answers_agree() -> None:
    half = math.sqrt(0.5)  # two prompts: +- 1/sqrt(2) stds from their mean
    local, across = [0, 0, half, -half], [half, half, -half, -half]
    assert answer_entropy(copo_batch(), COPO()).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)
    soft = [1 / (1 + math.exp(5))] * 2 + [0.5] * 2
    expected_weight = {
        "local": [1] * 4,
        "global": [0] * 4,
        "soft": soft,
        "zero": [1, 1, 1, 0],
        "forced": [0, 0, 1, 1],
        "soft_zero": [*soft[:3], 0],
        "soft_forced": [0, 0, *soft[2:]],
    }
    for mode, weight in expected_weight.items():
        mixed = [w * a + (1 - w) * g for w, a, g in zip(weight, local, across, strict=True)]
        assert weights("copo", copo_batch(), {"type": "copo", "mode": mode}) == pytest.approx(mixed, abs=1e-5), mode


def test_copo_lowers_the_mean_of_prompts_that_disagree() -> None:
    batch = hand_batch([1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 2, 2], extra={"answer": doubles(0, 0, 0, 1, 0, 1)})
    part = {"type": "copo", "mode": "global", "consistency": True}
    means = torch.tensor([1, 0.5 * (1 - 0.5), 0], dtype=torch.float64)  # n = 2: the rate is 1/2
    expected = ((means - means.mean()) / means.std()).repeat_interleave(2)
    assert weights("copo", batch, part) == pytest.approx(expected.tolist(), rel=1e-4)


def test_copo_on_one_prompt_has_no_global_signal() -> None:
    batch = hand_batch([1] * 2, [1, 1], [0, 0], extra={"answer": doubles(0, 0)})
    assert weights("copo", batch) == [0, 0]


# -- entropy on a softmax table --------------------------------------------------------------------------------------


def change(machine, *, right: bool, ratio: float) -> float:
    """Return how one small step moves mean entropy when every rewarded (or, below 1, punished) token has this ratio.

    `right` says whether the likeliest choice is the right one; otherwise rare choices are rewarded.
    """
    rate, logits = 1e-3, table().requires_grad_()
    choices, batch = sampled(logits.detach(), right=right)
    side = batch.reward > 0 if ratio > 1 else batch.reward == 0
    batch = batch.replace(old_logprob=batch.logprob - math.log(ratio) * batch.per_token(side.double()))
    outcome = run(machine, batch)
    loss = (logits.log_softmax(-1)[batch.group, choices] * outcome.grad_logprob).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    after = logits.detach() - rate * slope
    return float((entropy_of(after).mean() - entropy_of(logits.detach()).mean()) / rate)


@pytest.mark.parametrize(
    ("preset", "part"),
    [
        ("ce-gppo", {"type": "ce_gppo", "beta_high": 0.0}),
        ("gppo", {"type": "ce_gppo", "beta_high": 0.0}),
        ("cispo", {"type": "ppo_clip"}),
        ("sapo", {"type": "ppo_clip"}),
        ("agentic-aepo", {"type": "ppo_clip"}),
    ],
)
def test_rare_rewarded_tokens_that_survive_the_clip_raise_entropy(preset: str, part: dict) -> None:
    assert change(objective(preset), right=False, ratio=1.5) > change(objective(preset, part), right=False, ratio=1.5)


def test_rare_punished_tokens_that_survive_the_clip_lower_entropy() -> None:
    none = {"type": "ce_gppo", "beta_low": 0.0}
    assert change(objective("ce-gppo"), right=True, ratio=0.5) < change(
        objective("ce-gppo", none), right=True, ratio=0.5
    )


def test_an_open_upper_end_raises_entropy_and_an_open_lower_end_lowers_it() -> None:
    def opened(end: float, **batch) -> float:
        part = {"type": "flexible_clip", "open_end": end}
        return change(objective("flexible-clip-od", part), **batch)

    assert opened(1.0, right=False, ratio=1.25) > opened(0.0, right=False, ratio=1.25)
    assert opened(0.0, right=True, ratio=0.75) < opened(1.0, right=True, ratio=0.75)


def test_inverted_ratios_cost_less_entropy_where_likely_rewarded_tokens_have_risen() -> None:
    assert change(objective("aspo"), right=True, ratio=1.15) > change(objective("grpo"), right=True, ratio=1.15)
