"""Entropy-change methods: four tokens by hand, and what one step does to a table with a row for each token."""

from __future__ import annotations

import math
import secrets

import pytest
import torch

from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.objectives import Objective, Observation, Step
from trainer.objectives.entropy_change.two_branch import EntropyPhase

from .batches import DOUBLE, doubles, hand_batch, objective, run
from .test_signs import change

LOG_HALF = math.log(0.5)


def four(advantage: list[float], **fields) -> TokenBatch:
    return hand_batch([1, 1, 1, 1], [0, 0, 0, 0], advantage=doubles(*advantage), **fields)


# -- STEER ----------------------------------------------------------------------------------------------------------


def steered(advantage: list[float]) -> TokenBatch:
    """Return four tokens with log p + H of 0, 1, 2, 4."""
    logprob = doubles(0.5, 0.5, 0.25, 0.8).log()
    return four(advantage, logprob=logprob, old_entropy=doubles(0, 1, 2, 4) - logprob)


def test_steer_by_hand() -> None:
    # |A (1 - p)(log p + H)| = 0, 0.5, 1.5, 0.8
    found = run(objective("steer"), steered([1, -1, 1, -1])).weight
    torch.testing.assert_close(found, doubles(1.2, -(1.2 - 0.4 / 3), 0.8, -(1.2 - 0.4 * 0.8 / 1.5)))


def test_exponential_steer_by_hand() -> None:
    found = run(objective("steer-exp"), steered([1, -1, 1, -1])).weight
    torch.testing.assert_close(found, doubles(1, -(0.8 ** (1 / 3)), 0.8, -(0.8 ** (0.8 / 1.5))))


def test_steer_weighs_like_tokens_alike() -> None:
    batch = four([1, 1, 1, 1], old_entropy=doubles(2, 2, 2, 2))
    torch.testing.assert_close(run(objective("steer"), batch).weight, torch.ones(4, dtype=DOUBLE))
    calm = four([0.1, 0.1, 0.1, 0.1], logprob=doubles(-1, -1, -1, -1), old_entropy=doubles(1, 1, 1, 1))
    torch.testing.assert_close(run(objective("steer-exp"), calm).weight, torch.full((4,), 0.1, dtype=DOUBLE))


def test_steer_spares_entropy() -> None:
    # the exponential form only takes weight away, most where the most entropy would go
    assert change(objective("grpo")) < change(objective("steer-exp")) < 0


def test_steer_refuses_bounds_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match="weight_low"):
        objective("steer", {"type": "steer", "weight_low": 0.9, "weight_high": 0.5})


# -- Clip_B, Clip_V -------------------------------------------------------------------------------------------------


def signals(values: list[float], advantage: list[float]) -> TokenBatch:
    """Return four tokens of probability one half with these discriminators S."""
    logprob = torch.full((4,), LOG_HALF, dtype=DOUBLE)
    return four(advantage, logprob=logprob, entropy=doubles(*values) / 0.5 - logprob)


def test_clip_b_drops_punished_tokens_far_below_the_mean() -> None:
    machine = objective("clip-b", {"type": "clip_b", "threshold": 1.5})  # S has mean 0 and standard deviation sqrt(3)
    found = run(machine, signals([-3, 1, 1, 1], [-1, -1, -1, 1]))
    assert found.mask.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(found.grad_logprob, doubles(0, 1, 1, -1) / 3)  # it left the denominator
    assert run(machine, signals([-3, 1, 1, 1], [1, -1, -1, 1])).mask.tolist() == [1, 1, 1, 1]
    assert run(machine, signals([1, 1, 1, 1], [-1, -1, -1, -1])).mask.tolist() == [1, 1, 1, 1]


def test_the_drop_is_decided_once_per_rollout_batch() -> None:
    machine, now = objective("clip-b", {"type": "clip_b", "threshold": 1.5}), Step()
    prepared = machine.prepare(signals([-3, 1, 1, 1], [-1, -1, -1, 1]), now)
    moved = prepared.replace(entropy=prepared.need("entropy").flip(0))  # the policy of a later minibatch
    assert machine.apply(moved, now).mask.tolist() == [0, 1, 1, 1]


def test_the_drop_reads_the_policy_that_sampled() -> None:
    batch = signals([-3, 1, 1, 1], [-1, -1, -1, -1])
    later = {"logprob": batch.logprob.flip(0) - 1, "entropy": torch.zeros(4, dtype=DOUBLE)}
    batch = batch.replace(old_logprob=batch.logprob, old_entropy=batch.entropy, **later)
    assert run(objective("clip-b", {"type": "clip_b", "threshold": 1.5}), batch).mask.tolist() == [0, 1, 1, 1]


def exact(values: list[float], advantage: list[float]) -> TokenBatch:
    """Return four tokens with these N - S, by S = 0."""
    batch = signals([0, 0, 0, 0], advantage)
    return batch.replace(sum_p2=torch.zeros(4, dtype=DOUBLE), sum_p2_logp=doubles(*values))


@pytest.mark.parametrize(
    ("most", "advantage", "mask"),
    [
        (1.0, [-1, -1, -1, -1], [0, 0, 0, 1]),  # 4, 3 and 2 are above the standard deviation of 1.87
        (0.5, [-1, -1, -1, -1], [0, 0, 1, 1]),  # the budget takes the two largest
        (1e-4, [-1, -1, -1, -1], [0, 1, 1, 1]),  # at least one
        (1e-4, [-1, -1, 0, -1], [0, 1, 0, 1]),  # those without advantage are dropped besides
        (1.0, [1, -1, -1, -1], [1, 0, 0, 1]),  # rewarded tokens stay
    ],
)
def test_clip_v_drops_the_largest_changes_within_its_budget(
    most: float, advantage: list[float], mask: list[int]
) -> None:
    machine = objective("clip-v", {"type": "clip_v", "threshold": 1.0, "most": most})
    assert run(machine, exact([4, 3, 2, -1], advantage)).mask.tolist() == mask


def test_a_statistic_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="sum_p2 is missing"):
        run(objective("clip-v"), signals([0, 0, 0, 0], [1, 1, 1, 1]))


# -- one row of logits for each token -------------------------------------------------------------------------------


def table(dice: torch.Generator, rows: int = 200, choices: int = 7) -> tuple[torch.Tensor, torch.Tensor, TokenBatch]:
    """Return logits [R, V], one drawn choice a row, and the batch: a completion a row, advantages at random."""
    logits = 1.5 * torch.randn(rows, choices, generator=dice, dtype=DOUBLE)
    chosen = torch.multinomial(logits.softmax(-1), 1, generator=dice).squeeze(1)
    logp = logits.log_softmax(-1)
    logprob, p = logp.gather(1, chosen[:, None]).squeeze(1), logp.exp()
    fields = {
        "logprob": logprob,
        "old_logprob": logprob,
        "entropy": -(p * logp).sum(-1),
        "sum_p2": p.square().sum(-1),
        "sum_p2_logp": (p.square() * logp).sum(-1),
        "advantage": torch.randn(rows, generator=dice, dtype=DOUBLE),
    }
    return logits, chosen, hand_batch([1] * rows, [0.0] * rows, **fields)


def moved(machine: Objective, drawn: tuple[torch.Tensor, torch.Tensor, TokenBatch], **step) -> float:
    """Return how far the summed entropy moves in one small step, per unit of step size and token."""
    rate, (logits, chosen, batch) = 1e-4, drawn
    pulled = torch.nn.functional.one_hot(chosen, logits.shape[1]) - logits.softmax(-1)
    grad = run(machine, batch, **step).grad_logprob * batch.tokens
    after = (logits - rate * grad[:, None] * pulled).log_softmax(-1)
    return float((-(after.exp() * after).sum(-1) - batch.need("entropy")).mean() / rate)


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, TokenBatch]:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return table(torch.Generator().manual_seed(seed))


def test_balanced_flows_leave_entropy_where_it_is(drawn: tuple[torch.Tensor, torch.Tensor, TokenBatch]) -> None:
    logits, chosen, batch = drawn
    likely = chosen == logits.argmax(-1)  # as when the policy knows the answer: what is likely is rewarded
    skewed = (logits, chosen, batch.replace(advantage=batch.need("advantage") / 4 + 2 * likely - 1))
    plain, balanced = moved(objective("grpo"), skewed), moved(objective("opefo"), skewed)
    assert plain < 0
    assert abs(balanced) < 1e-3 * abs(plain)


def test_balanced_flow_by_hand() -> None:
    # N - S = 1, 1, 1, -1 and advantages as given: changes 1, 2, 1, -2; lambda = (2 - 4) / 6
    found = run(objective("opefo"), exact([1, 1, 1, -1], [1, 2, 1, 2]))
    torch.testing.assert_close(found.weight, doubles(2 / 3, 4 / 3, 2 / 3, 8 / 3))
    assert found.metrics["objective/flow_lambda"] == pytest.approx(-1 / 3)
    still = run(objective("opefo"), exact([0, 0, 0, 0], [1, 2, 1, 2]))
    torch.testing.assert_close(still.weight, doubles(1, 2, 1, 2))


def test_the_simplified_flow_needs_no_moments(drawn: tuple[torch.Tensor, torch.Tensor, TokenBatch]) -> None:
    batch = drawn[2].replace(sum_p2=None, sum_p2_logp=None)
    machine = objective("opefo", {"type": "entropy_flow", "estimate": "simplified"})
    assert machine.needs.isdisjoint({"sum_p2", "sum_p2_logp"})
    p = batch.logprob.exp()
    flow = (-run(machine, batch).weight * p * (1 - p) * (batch.logprob + batch.need("entropy"))).sum()
    assert float(flow) == pytest.approx(0, abs=1e-12)


def test_the_phase_moves_entropy_its_way(drawn: tuple[torch.Tensor, torch.Tensor, TokenBatch]) -> None:
    machine = objective("entropy-polarity")
    up, still, down = (moved(machine, drawn, knobs={"polarity_phase": phase}) for phase in (1.0, 0.0, -1.0))
    assert up > still > down
    assert still == pytest.approx(moved(objective("grpo"), drawn))


def test_renormalised_polarity_has_mean_one() -> None:
    machine = objective("entropy-polarity", {"type": "entropy_polarity", "renormalise": True})
    found = run(machine, exact([1, 1, 1, -1], [1, 1, 1, 1]), knobs={"polarity_phase": 1.0}).weight
    torch.testing.assert_close(found, doubles(1.5, 1.5, 1.5, 0.5) / 1.25)


def test_balanced_flow_and_polarity_refuse_each_other() -> None:
    with pytest.raises(ValueError, match="entropy_polarity does not work together with entropy_flow"):
        objective("entropy-polarity", {"type": "entropy_flow"})


def test_the_phase_follows_a_running_mean_to_its_bounds() -> None:
    part, knobs = EntropyPhase(target=0.5, width=0.2, decay=0.5), {"entropy_target": 0.5}

    def seen(entropy: float) -> Observation:
        return Observation(step=1, total_steps=10, entropy=entropy, entropy_sampled=9.0, reward=0.0)

    state, first = part.update(part.initial_state(), seen(0.4), knobs)
    assert first == {"polarity_phase": pytest.approx(0.5)}
    state, second = part.update(state, seen(0.6), knobs)  # the mean is back at the target
    assert second == {"polarity_phase": pytest.approx(0.0)}
    assert part.update(state, seen(5.0), knobs)[1] == {"polarity_phase": -1.0}
    assert part.update(state, seen(math.nan), knobs) == (state, {})


# -- ERC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["erc", "gppo-erc"])
def test_erc_stops_tokens_whose_entropy_left_the_band(preset: str) -> None:
    batch = four([1, 1, 1, 1], entropy=doubles(1.0, 1.25, 0.75, 0.0), old_entropy=doubles(1, 1, 1, 0))
    found = run(objective(preset), batch)
    assert found.mask.tolist() == [1, 0, 0, 1]  # a token that was sure and stays sure has not moved
    torch.testing.assert_close(found.grad_logprob, doubles(-1, 0, 0, -1) / 4)  # the denominator stays


def test_erc_masks_nothing_on_fresh_rollouts() -> None:
    found = run(objective("erc"), four([1, -1, 1, -1], entropy=doubles(0, 0.1, 1, 3)))
    assert found.mask.tolist() == [1, 1, 1, 1]
