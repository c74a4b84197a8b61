"""Covariance methods by hand: what CW-GRPO weighs, what SPEAR keeps and replays, how KL-Cov counts."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.config import load
from trainer.errors import ConfigError
from trainer.objectives import Step

from .batches import DOUBLE, doubles, hand_batch, objective, run
from .test_signs import change

# covariances 1, -1, 0, 0: mean 0, population standard deviation sqrt(1/2)
WEIGHED = {"advantage": doubles(1, 1, -1, -1), "logprob": doubles(-1, -3, -2, -2)}


@pytest.mark.parametrize("scope", ["group", "step"])
def test_cw_grpo_by_hand(scope: str) -> None:
    batch = hand_batch([1, 1, 1, 1], [1, 1, 0, 0], **WEIGHED)
    found = run(objective("cw-grpo", {"type": "covariance_weight", "scope": scope}), batch)
    low, high = 2 / (1 + math.e), 2 * math.e / (1 + math.e)  # exp(-1) and 1, over their mean
    torch.testing.assert_close(found.weight, doubles(low, low, -high, -high))


def test_cw_grpo_takes_spread_and_mean_weight_from_each_prompt() -> None:
    one = hand_batch([1, 1, 1, 1], [1, 1, 0, 0], **WEIGHED)
    both = {name: torch.cat([value, 3 * value]) for name, value in WEIGHED.items()}
    two = hand_batch([1] * 8, [1, 1, 0, 0] * 2, [0] * 4 + [1] * 4, **both)
    alone, together = run(objective("cw-grpo"), one), run(objective("cw-grpo"), two)
    torch.testing.assert_close(together.weight[:4], alone.weight)
    torch.testing.assert_close(together.weight[4:], 3 * alone.weight)  # a larger scale changes no weight


def test_cw_grpo_without_spread_is_grpo() -> None:
    batch = hand_batch([2, 1], [1, 0], [0, 1], advantage=doubles(0.7, 0.7, -0.3))
    torch.testing.assert_close(run(objective("cw-grpo"), batch).weight, batch.need("advantage"))


def test_cw_grpo_spares_entropy() -> None:
    assert change(objective("grpo")) < change(objective("cw-grpo")) < 0


def test_kl_cov_counts_in_percent_like_the_first_code() -> None:
    count = 100
    batch = hand_batch(
        [count], [1], logprob=-torch.arange(1, count + 1, dtype=DOUBLE) / 50, advantage=torch.ones(count)
    )
    batch = batch.replace(old_logprob=batch.logprob - 0.1, advantage=torch.linspace(-1, 1, count, dtype=DOUBLE))
    for percent, tokens in ((29.0, 29), (0.2, 1), (100.0, 100)):
        part = {"type": "kl_cov", "percent": percent}
        assert run(objective("kl-cov", part), batch).metrics["objective/kl_cov_share"] == tokens / count


def test_spear_keeps_the_prompts_with_the_widest_rewards() -> None:
    rewards = [0, 0, 0, 1, 0, 4, 0, 2]
    found = run(objective("spear"), hand_batch([1] * 8, rewards, [0, 0, 1, 1, 2, 2, 3, 3]))
    assert found.mask.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found.advantage[2:], doubles(-0.5, 0.5, -2, 2, -1, 1))  # centred, not divided


def test_spear_spares_entropy() -> None:
    part = {"type": "clip_cov", "share": 0.3, "lower": 0.05}
    assert change(objective("spear", {"type": "clip_cov", "share": 1e-9})) < change(objective("spear", part)) < 0


REPLAYED = {
    "replayed": doubles(0, 0, 1, 1),
    "recent_mean": doubles(0, 0, 0.5, 0.5),
    "recent_std": doubles(0, 0, 0.25, 0.25),
}


def replay(step: int) -> torch.Tensor:
    """Return the weights with two fresh completions (rewards 1, 0) and two replayed ones (1, 0.5)."""
    batch = hand_batch([1, 1, 1, 1], [1, 0, 1, 0.5], [0, 0, 1, 2], extra=REPLAYED)
    machine = objective("spear-replay", {"type": "clip_cov", "lower": 900.0, "upper": 1000.0})
    return run(machine, batch, step=step, max_completion_tokens=4).weight


def test_spear_replays_what_is_still_worth_something() -> None:
    # centred rewards of the fresh pair, (1 - 0.5) / 0.25 of the first replayed one; the second is worth nothing.
    # 3 completions count: the fresh loss is over 2 of them, the replayed one over 1
    torch.testing.assert_close(replay(200), doubles(0.5 * 1.5, -0.5 * 1.5, 2 * 3, 0), rtol=1e-5, atol=0)
    torch.testing.assert_close(replay(100), doubles(0.75, -0.75, 3, 0), rtol=1e-5, atol=0)  # half-way up the cosine
    torch.testing.assert_close(replay(0), doubles(0.75, -0.75, 0, 0))


def test_replayed_completions_are_no_group_of_the_step() -> None:
    batch = hand_batch([1] * 6, [0, 1, 0, 5, 1, 1], [0, 0, 1, 1, 2, 3], extra={"replayed": doubles(0, 0, 0, 0, 1, 1)})
    machine = objective("spear", {"type": "largest_std_filter", "share": 0.5})
    assert machine.prepare(batch, Step()).need("mask").tolist() == [0, 0, 1, 1, 1, 1]


def test_spear_runs_and_its_replay_is_refused_with_the_reason() -> None:
    load({"objective": {"preset": "spear"}})
    with pytest.raises(ConfigError, match="rollouts kept from earlier steps"):
        load({"objective": {"preset": "spear-replay"}})
