"""Which passes a step takes: what may stand in for the scoring pass, and that it never changes an update."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.trainer.objectives.batches import DOUBLE, objective, random_batch, run
from tests.trainer.runs import small
from trainer.batch import TokenBatch
from trainer.errors import ConfigError
from trainer.objectives import PARTS, PRESETS
from trainer.passes import entropy_estimate, needs_scoring, old_logprobs, sighted
from trainer.rollout.hf import HfEngine

CAPS = replace(HfEngine.caps, moments=True)


def on_policy(batch: TokenBatch, dice: torch.Generator) -> TokenBatch:
    """Return the batch with other statistics of a policy that has not moved since it sampled."""
    logprob = -torch.randn(batch.tokens, generator=dice, dtype=DOUBLE).abs() - 0.05
    entropy = torch.randn(batch.tokens, generator=dice, dtype=DOUBLE).abs()
    return batch.replace(
        logprob=logprob, old_logprob=logprob, engine_logprob=logprob, entropy=entropy, old_entropy=entropy,
        auxiliary=None,
    )  # fmt: skip


def gradients(name: str, batch: TokenBatch) -> dict[str, torch.Tensor]:
    machine = objective(name)
    knobs = {knob: value.value for knob, value in machine.knobs().items()}
    outcome = run(machine, batch, step=4, total_steps=10, max_completion_tokens=10, seed=1, knobs=knobs)
    entropy = torch.zeros_like(outcome.grad_logprob) if outcome.grad_entropy is None else outcome.grad_entropy
    return {"logprob": outcome.grad_logprob, "entropy": entropy, **outcome.grad_extra}


def furthest(name: str, seed: int) -> float:
    """Return how far two draws of the policy's statistics take the preset's gradients apart."""
    dice = torch.Generator().manual_seed(seed)
    batch = random_batch(dice)
    one, other = (gradients(name, on_policy(batch, dice)) for _ in range(2))
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


BLIND = [name for name in PRESETS if not sighted(objective(name).parts)]


@pytest.mark.parametrize("name", BLIND)
def test_what_claims_to_be_blind_gives_the_same_gradients_whatever_the_statistics(name):
    seed = random.randrange(1 << 30)
    assert furthest(name, seed) < 1e-12, seed


def test_the_plain_methods_are_blind_and_those_that_look_at_tokens_are_not():
    assert {"grpo", "dapo", "dr-grpo", "cispo", "gspo", "sapo", "entropy-bonus"} <= set(BLIND)
    for name in ("clip-cov", "top-entropy-mask", "reasoning-with-exploration", "gtpo", "cw-grpo"):
        assert name not in BLIND
        assert furthest(name, 1) > 1e-6  # the comparison above can fail


def test_every_part_that_claims_to_be_blind_is_in_a_preset_that_was_tried():
    tried = {type(part) for name in BLIND for part in objective(name).parts}
    assert {name for name, kind in PARTS.items() if kind.blind and kind not in tried} <= {"importance_ratio"}
    dice = torch.Generator().manual_seed(2)
    batch, bare = random_batch(dice), objective("grpo", {"type": "importance_ratio"})
    one, other = (run(bare, on_policy(batch, dice), step=1, total_steps=2) for _ in range(2))
    assert float((one.grad_logprob - other.grad_logprob).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("changes", "choice", "word"),
    [
        ({}, "engine", "no gradient"),
        ({"model": {"dtype": "bfloat16"}}, "engine", "no gradient"),
        ({"objective": {"preset": "top-entropy-mask"}}, "engine", "float32"),
        ({"objective": {"preset": "entropy-target"}}, "engine", "float32"),
        ({"objective": {"preset": "top-entropy-mask"}, "model": {"dtype": "bfloat16"}}, "score", "bfloat16"),
        ({"objective": {"preset": "siren"}}, "score", "nucleus_entropy"),
        ({"objective": {"preset": "aepo"}}, "score", "another temperature"),
        ({"objective": {"parts": [{"type": "kl_penalty"}]}}, "score", "kl_penalty"),
        ({"objective": {"parts": [{"type": "ppo_clip", "correction": "token"}]}}, "score", "compares sampling"),
        ({"optimiser": {"minibatches_per_step": 2}}, "score", "2 updates"),
        ({"model": {"lora": {"enabled": True, "dropout": 0.1}}}, "score", "dropout"),
        ({"model": {"lora": {"enabled": True}}}, "engine", "no gradient"),
        ({"optimiser": {"old_logprobs": "score"}}, "score", "optimiser.old_logprobs"),
    ],
    ids=str,
)
def test_the_choice_follows_from_what_is_read_and_how_sampling_rounds(changes, choice, word):
    found = old_logprobs(small(**changes), CAPS)
    assert found.choice == choice
    assert word in found.why


def test_without_exact_entropy_or_moments_the_step_is_scored():
    assert old_logprobs(small(), replace(CAPS, exact_entropy=False)).choice == "score"
    reads_moments = small(objective={"preset": "entropy-target"})
    assert old_logprobs(reads_moments, replace(CAPS, moments=False)).choice == "score"


BOUNDS = {"engine": "vllm", "vllm": {"entropy": "bounds"}}


@pytest.mark.parametrize("preset", ["entropy-target", "skywork-adaptive", "top-entropy-mask"])
def test_what_acts_on_entropies_is_never_given_bounds_of_them(preset):
    lesser = replace(CAPS, exact_entropy=False, moments=False)
    with pytest.raises(ConfigError, match=r"optimiser.old_logprobs: .* acts on entropies") as caught:
        small(objective={"preset": preset}, sampling=BOUNDS, optimiser={"old_logprobs": "engine"})
    assert caught.value.field == "optimiser.old_logprobs"
    assert old_logprobs(small(objective={"preset": preset}, sampling=BOUNDS), lesser).choice == "score"
    try:  # the tap may turn out to lie only when the engine is there
        late = small(objective={"preset": preset}, optimiser={"old_logprobs": "engine"})
    except ConfigError:
        return  # sampling is not enough for it under any engine
    found = old_logprobs(late, lesser)
    assert found.choice == "score"
    assert "acts on entropies" in found.why


def test_what_only_reports_entropies_may_go_without_a_pass_and_says_that_they_are_bounds():
    lesser = replace(CAPS, exact_entropy=False, moments=False)
    config = small(sampling=BOUNDS, optimiser={"old_logprobs": "engine"})
    passed = old_logprobs(config, lesser)
    assert passed.choice == "engine"
    assert entropy_estimate(passed, lesser).choice == "bounds"
    assert entropy_estimate(old_logprobs(small(sampling=BOUNDS), lesser), lesser).choice == "exact"
    assert entropy_estimate(passed, CAPS) is None


@pytest.mark.parametrize(
    "changes",
    [{"optimiser": {"minibatches_per_step": 2}}, {"objective": {"preset": "siren"}}, {"objective": {"preset": "aepo"}}],
    ids=str,
)
def test_asking_for_sampling_where_it_is_not_enough_is_refused_with_the_field(changes):
    given = {**changes, "optimiser": {**changes.get("optimiser", {}), "old_logprobs": "engine"}}
    with pytest.raises(ConfigError, match=r"optimiser.old_logprobs: engine is not enough") as caught:
        small(**given)
    assert caught.value.field == "optimiser.old_logprobs"
    assert needs_scoring(small(**changes)) in str(caught.value)
