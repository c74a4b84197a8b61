"""The likeliest tokens that come with each drawn one: of the raw policy, for who asked, as many as asked."""

from __future__ import annotations

import random

import pytest
import torch

from tests.trainer.rollout.naive import requests, tiny
from trainer.rollout import SamplerSpec, TapSpec
from trainer.rollout.hf import HfEngine


@pytest.fixture(scope="module")
def policy():
    return tiny()


@torch.no_grad()
def raw(policy, given: list[int], temperature: float) -> torch.Tensor:
    """Return the policy's log-probs behind these tokens, float64 [V]."""
    logits = policy.lm(torch.tensor([given]), use_cache=False).logits[0, -1].double()
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize(
    "sampler", [SamplerSpec(), SamplerSpec(temperature=0.7, top_k=2), SamplerSpec(temperature=1.5, top_p=0.5)]
)
def test_they_are_those_of_the_whole_policy(policy, sampler) -> None:
    seed = random.randrange(2**31)
    print(seed)
    random.seed(seed)
    asked = requests(policy, 3, sampler=sampler, tap=TapSpec(topk=3))
    for request, made in zip(asked, HfEngine(policy).run(asked), strict=True):
        assert len(made.top_ids) == len(made.top_logprob) == len(made.ids)
        for place, (ids, logprobs) in enumerate(zip(made.top_ids, made.top_logprob, strict=True)):
            expected = raw(policy, [*request.prompt_ids, *made.ids[:place]], sampler.temperature)
            assert logprobs == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
            assert logprobs == pytest.approx(expected[ids].tolist(), abs=1e-4)
            if made.ids[place] in ids:
                assert made.logprob[place] == pytest.approx(logprobs[ids.index(made.ids[place])], abs=1e-5)


def test_only_who_asks_gets_them_and_no_more_than_there_are(policy) -> None:
    few, all_, none = (requests(policy, 2, tap=TapSpec(topk=topk)) for topk in (2, 1000, 0))
    mixed = [*few, *all_, *none]
    found = HfEngine(policy).run(mixed)
    for request, made in zip(mixed, found, strict=True):
        count = min(request.tap.topk, policy.vocabulary)
        assert [len(ids) for ids in made.top_ids] == [count] * len(made.ids) * bool(count)
    alone = HfEngine(policy).run(none)
    assert [made.ids for made in alone] == [made.ids for made in found[len(few) + len(all_) :]]
