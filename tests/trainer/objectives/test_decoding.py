"""Parts that change how tokens are drawn: what they ask of the engine, and what HAPO's temperature remembers."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from tests.trainer.objectives.batches import DOUBLE, objective, random_batch
from trainer.objectives import Objective, Observation, Step
from trainer.rollout import SamplerSpec
from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, UniformChoice, VocabularyDropout

GIVEN = SamplerSpec(temperature=0.9, top_p=0.97)


def drawn(machine: Objective, sample: int = 0, samples: int = 8, **step) -> SamplerSpec:
    return machine.sampler(GIVEN, sample, samples, Step(**step))


def observed(metrics: dict[str, float]) -> Observation:
    return Observation(step=1, total_steps=9, entropy=1.0, entropy_sampled=1.0, reward=0.0, metrics=metrics)


def after(machine: Objective, entropy: torch.Tensor, **changes) -> dict:
    """Return the parts' memory after a step whose tokens had these entropies."""
    batch = random_batch(torch.Generator().manual_seed(random.getrandbits(30)))
    batch = batch.replace(
        logprob=-torch.ones(len(entropy), dtype=DOUBLE), sequence=torch.zeros(len(entropy), dtype=torch.long),
        position=torch.arange(len(entropy)), old_logprob=None, engine_logprob=None, ref_logprob=None, sum_p2=None,
        sum_p2_logp=None, extra={}, group=torch.zeros(1, dtype=torch.long), reward=torch.ones(1, dtype=DOUBLE),
        length=torch.tensor([len(entropy)]), entropy=entropy, old_entropy=entropy, valid=None, truncated=None,
        auxiliary=None, **{"mask": None, "advantage": None, **changes},
    )  # fmt: skip
    step = Step(knobs={knob: value.value for knob, value in machine.knobs().items()}, memory=machine.start())
    machine.prepare(batch, step)
    return machine.control(step.memory, observed(step.metrics), step.knobs)[0]


HAPO = "hapo-temperature"


def test_the_first_step_is_drawn_plainly():
    machine = objective(HAPO)
    assert drawn(machine) == GIVEN
    assert drawn(machine, memory=machine.start()) == GIVEN


@pytest.mark.parametrize(("mode", "sign"), [("intended", 1), ("as_released", -1)])
def test_the_statistics_of_a_step_become_the_next_ones_temperature(mode, sign):
    """ln H = -2, -1, 0, 1, 2 by hand: the 0.75 quantile is 1, spread sqrt((9 + 4 + 1 + 0 + 1) / 5) = sqrt(3)."""
    machine = objective(HAPO, {"type": "hapo_temperature", "sign_mode": mode, "pivot": 0.75, "strength": 0.2})
    memory = after(machine, torch.tensor([0.0, 2.0, -1.0, 1.0, -2.0], dtype=DOUBLE).exp())
    got = drawn(machine, memory=memory)
    (modifier,) = got.modifiers
    assert isinstance(modifier, AdaptiveTemperature)
    assert (got.temperature, got.top_p) == (0.9, 0.97)
    assert modifier.pivot == pytest.approx(1)
    assert modifier.spread == pytest.approx(math.sqrt(3))
    assert modifier.up == pytest.approx(math.sqrt(3))  # the highest h is 1 / sqrt(3)
    assert modifier.down == pytest.approx(sign * math.sqrt(3) / 3)
    assert modifier.strength == 0.2


def test_tokens_that_do_not_count_are_not_measured():
    machine = objective(HAPO)
    entropy = torch.rand(40, dtype=DOUBLE) + 0.1
    mask = (torch.arange(60) < 40).double()
    odd = torch.cat([entropy, torch.full((20,), 1e3, dtype=DOUBLE)])
    assert after(machine, odd, mask=mask)["hapo_temperature"] == after(machine, entropy)["hapo_temperature"]


def test_a_step_without_tokens_leaves_the_statistics_and_equal_entropies_change_nothing():
    machine = objective(HAPO)
    kept = {"hapo_temperature": {"pivot": 0.1, "spread": 1.0, "highest": 1.0, "lowest": -1.0}}
    assert machine.control(kept, observed({}), {})[0]["hapo_temperature"] == kept["hapo_temperature"]
    modifier = drawn(machine, memory=after(machine, torch.ones(5, dtype=DOUBLE))).modifiers[0]
    assert (modifier.up, modifier.down, modifier.spread) == (0, 0, 0)


def test_what_is_remembered_survives_a_checkpoint_exactly():
    machine = objective(HAPO)
    memory = after(machine, torch.rand(50, dtype=DOUBLE))
    assert drawn(machine, memory=json.loads(json.dumps(memory))) == drawn(machine, memory=memory)


def test_hapo_itself_has_its_temperature_and_a_person_may_lower_it():
    machine = objective("hapo")
    memory = after(machine, torch.rand(50, dtype=DOUBLE))
    assert drawn(machine, memory=memory, knobs={"hapo_tau": 0.01}).modifiers[0].strength == 0.01
    assert drawn(machine, memory=memory).modifiers[0].strength == 0.05


def test_forks_get_their_temperature_from_the_knobs():
    machine = objective("fork-temperature")
    assert drawn(machine).modifiers == (ForkTemperature(0.672, 1.2, 1.0),)
    assert drawn(machine, knobs={"fork_threshold": 2.0}).modifiers[0].threshold == 2


@pytest.mark.parametrize(
    ("share", "samples", "uniform"), [(0.5, 16, 8), (1, 4, 4), (0, 4, 0), (0.5, 5, 2), (0.1, 4, 0)]
)
def test_a_share_of_each_group_is_drawn_by_cuts(share, samples, uniform):
    machine = objective("mixed-cuts", {"type": "cuts", "share": share})
    specs = [drawn(machine, sample, samples) for sample in range(samples)]
    assert [spec != GIVEN for spec in specs] == [False] * (samples - uniform) + [True] * uniform
    assert all(spec.modifiers == (UniformChoice(5, 0.03, 5),) for spec in specs[samples - uniform :])


def test_typical_sampling_stands_in_for_the_run_s_own():
    assert drawn(objective("typical-sampling")).typical_p == 0.9


def test_vocabulary_dropout_is_drawn_anew_as_asked_and_spares_special_tokens():
    step = objective("vocabulary-dropout")
    masks = [
        drawn(step, sample, step=number, special_ids=(1, 2)).modifiers[0] for number in (1, 2) for sample in (0, 1)
    ]
    assert all(isinstance(mask, VocabularyDropout) and mask.spared == (1, 2) for mask in masks)
    assert masks[0] == masks[1] != masks[2]
    each = objective("vocabulary-dropout", {"type": "vocabulary_dropout", "anew": "sample"})
    assert len({drawn(each, sample, step=3).modifiers for sample in range(8)}) == 8
    assert drawn(each, 3, step=3, seed=1) != drawn(each, 3, step=3, seed=2)


def test_several_parts_of_decoding_add_up():
    machine = objective("cuts", {"type": "fork_temperature"}, {"type": "typical_sampling"})
    got = drawn(machine)
    assert {type(modifier) for modifier in got.modifiers} == {ForkTemperature, UniformChoice}
    assert got.typical_p == 0.9
