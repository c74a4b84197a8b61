"""The hf engine: exact statistics, and tokens that depend on the request alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainer.runs import ROOT
from trainer.config import ModelConfig
from trainer.errors import ResourceError
from trainer.policy import Policy, Trajectory
from trainer.rollout import GenRequest, SamplerSpec
from trainer.rollout.hf import HfEngine, _Wave
from trainer.rollout.sampling import Samplers, draw, seed_of, uniforms


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(1)
    found = Policy(ROOT / "trainer/builtin/countdown-tiny", ModelConfig(), torch.device("cpu"))
    found.budget = 2048
    return found


@pytest.fixture(scope="module")
def engine(policy) -> HfEngine:
    return HfEngine(policy)


def requests(policy: Policy, count: int, **changes) -> list[GenRequest]:
    """Return requests for prompts of different lengths, two samples each, with fresh seeds."""
    source = random.Random()
    made = []
    for index in range(count):
        digits = "".join(sorted(source.choices("123456789", k=3)))
        prompt = tuple(policy.tokenizer(f"{digits}={source.randrange(1, 60)}:")["input_ids"])
        for sample in range(2):
            seed = seed_of(source.getrandbits(32), sample)
            made.append(GenRequest(len(made), index, sample, prompt, seed, max_new=10, **changes))
    return made


def test_statistics_are_those_of_a_full_forward_pass_in_float64(policy, engine):
    import copy

    exact = copy.deepcopy(policy.lm).double()
    asked = requests(policy, 6, sampler=SamplerSpec(temperature=random.uniform(0.5, 2)))
    for request, got in zip(asked, engine.run(asked), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *got.ids]])
        logp = (exact(ids).logits[0] / request.sampler.temperature).log_softmax(-1)
        start = len(request.prompt_ids) - 1
        rows = logp[start : start + len(got.ids)]
        assert got.logprob == pytest.approx([rows[t, token].item() for t, token in enumerate(got.ids)], abs=1e-5)
        assert got.entropy == pytest.approx((-(rows.exp() * rows).sum(-1)).tolist(), abs=1e-5)


def test_the_batch_around_a_request_does_not_change_its_tokens(policy, engine):
    asked = requests(policy, 8)
    together = engine.run(asked)
    shuffled = random.sample(asked, len(asked))
    for request, got in zip(shuffled, engine.run(shuffled), strict=True):
        assert got.ids == together[request.id].ids
    for request in random.sample(asked, 3):
        assert engine.run([request])[0].ids == together[request.id].ids


def test_a_prefix_is_continued_as_if_it_had_just_been_sampled(policy, engine):
    asked = requests(policy, 4)
    whole = engine.run(asked)
    cuts = [random.randrange(1, len(got.ids)) for got in whole]
    parts = [
        replace(request, prefix_ids=tuple(got.ids[:cut]), max_new=10 - cut)
        for request, got, cut in zip(asked, whole, cuts, strict=True)
    ]
    for got, part, cut in zip(whole, engine.run(parts), cuts, strict=True):
        assert part.ids == got.ids[cut:]
        assert part.entropy == pytest.approx(got.entropy[cut:], abs=1e-5)


def test_greedy_is_what_transformers_generates(policy, engine):
    asked = requests(policy, 5, sampler=SamplerSpec(temperature=0))
    for request, got in zip(asked, engine.run(asked), strict=True):
        prompt = torch.tensor([request.prompt_ids])
        out = policy.lm.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False
        )
        assert got.ids == out[0, len(request.prompt_ids) :].tolist()


def test_rows_may_have_different_samplers(policy, engine):
    asked = requests(policy, 4)
    mixed = [replace(request, sampler=SamplerSpec(temperature=0)) if request.sample else request for request in asked]
    plain = engine.run(asked)
    for request, got in zip(mixed, engine.run(mixed), strict=True):
        if request.sample == 0:
            assert got.ids == plain[request.id].ids
    one = [replace(request, sampler=SamplerSpec(top_k=1)) for request in mixed if request.sample]
    cold = [got.ids for request, got in zip(mixed, engine.run(mixed), strict=True) if request.sample]
    assert [got.ids for got in engine.run(one)] == cold


def test_a_completion_ends_at_its_end_token_or_its_limit(policy, engine):
    asked = [replace(request, max_new=1 + request.id % 8) for request in requests(policy, 8)]
    for request, got in zip(asked, engine.run(asked), strict=True):
        assert 1 <= len(got.ids) <= request.max_new
        ended = got.ids[-1] in policy.stop_ids
        assert got.finish_reason == ("stop" if ended else "length")
        assert ended or len(got.ids) == request.max_new
        assert not policy.stop_ids & set(got.ids[:-1])


def test_watched_requests_are_reported_whole_and_others_not_at_all(policy, engine):
    asked = [replace(request, watch=request.id % 3 == 0) for request in requests(policy, 5)]
    heard: dict[int, list[int]] = {}

    def listen(chunks):
        for chunk in chunks:
            assert chunk.first == len(heard.get(chunk.id, []))
            heard.setdefault(chunk.id, []).extend(chunk.ids)

    got = engine.run(asked, listen)
    assert heard == {request.id: got[request.id].ids for request in asked if request.watch}


def test_scoring_a_prefix_gives_the_sampler_s_own_numbers(policy, engine):
    asked = requests(policy, 3)
    for request, got in zip(asked, engine.run(asked), strict=True):
        scored = engine.score([replace(request, prefix_ids=tuple(got.ids))])[0]
        assert scored.logprob == pytest.approx(got.logprob, abs=1e-5)
        assert scored.entropy == pytest.approx(got.entropy, abs=1e-5)


def test_running_out_of_memory_makes_smaller_waves(policy, engine, monkeypatch):
    asked = requests(policy, 8)
    expected = [got.ids for got in engine.run(asked)]
    honest = _Wave.run

    def short(self, on_progress):
        if len(self.requests) > 5:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return honest(self, on_progress)

    monkeypatch.setattr(_Wave, "run", short)
    assert [got.ids for got in HfEngine(policy).run(asked)] == expected
    monkeypatch.setattr(_Wave, "run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(ResourceError, match=r"sampling\.max_completion_tokens"):
        HfEngine(policy).run(asked)


def test_other_errors_are_not_taken_for_a_lack_of_memory(policy, monkeypatch):
    monkeypatch.setattr(_Wave, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        HfEngine(policy).run(requests(policy, 1))


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_with_their_probabilities():
    probability = torch.rand(7).double() * (torch.rand(7) > 0.3)
    probability[3] = 0.5
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = draw(probability.expand(len(grid), -1), grid)
    share = torch.bincount(drawn, minlength=7) / len(grid)
    assert torch.allclose(share.double(), probability / probability.sum(), atol=2e-5)
    assert (share[probability == 0] == 0).all()


def test_a_number_at_the_very_end_never_draws_an_impossible_token():
    probability = torch.tensor([[0.3, 0.7, 0.0]], dtype=torch.float64)
    assert draw(probability, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 1
    assert draw(probability, torch.tensor([1.0], dtype=torch.float64)).item() == 1


def test_random_numbers_are_uniform_and_unrelated():
    seeds = np.array(
        [seed_of(0, step, group, sample) for step in range(8) for group in range(16) for sample in range(16)]
    )
    numbers = np.stack([uniforms(seeds.astype(np.uint64), np.full(len(seeds), t)) for t in range(16)])  # [T, R]
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
    expected = numbers.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 130  # chi-square with 63 degrees: 1 in a million
    centred = numbers - 0.5
    neighbours = [(centred[1:] * centred[:-1]).mean(), (centred[:, 1:] * centred[:, :-1]).mean()]
    assert max(map(abs, neighbours)) < 5 / 12 / np.sqrt(numbers.size)


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (SamplerSpec(top_k=2), {0, 1}),
        (SamplerSpec(top_p=0.49), {0}),
        (SamplerSpec(top_p=0.51), {0, 1}),
        (SamplerSpec(min_p=0.3), {0, 1}),
        (SamplerSpec(top_p=0.999, top_k=3, min_p=0.1), {0, 1, 2}),
        (SamplerSpec(top_p=1e-9), {0}),
    ],
)
def test_truncation_keeps_the_likeliest_and_reports_the_whole_policy(spec, kept):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 400
    numbers = (torch.arange(count) + 0.5).double() / count
    token, logprob, entropy = Samplers([spec] * count, torch.device("cpu")).sample(logits.expand(count, -1), numbers)
    assert set(token.tolist()) == kept
    assert torch.allclose(logprob, logits[token])
    assert entropy[0].item() == pytest.approx(-(logits.exp() * logits).sum().item(), abs=1e-6)


def test_gradients_equal_those_of_one_plain_loss(policy):
    """Pass 2 carries given gradients of log-prob and entropy through the model exactly as autograd would."""
    rows = [
        Trajectory(r.prompt_ids, tuple(random.choices(range(3, 18), k=random.randrange(1, 7))))
        for r in requests(policy, 3)
    ]
    count = sum(len(row.completion) for row in rows)
    g_logprob, g_entropy = torch.randn(count), torch.randn(count)
    for start in range(0, count, 4):  # some completions without any gradient
        g_logprob[start : start + 2] = g_entropy[start : start + 2] = 0

    def clear():
        policy.lm.zero_grad(set_to_none=True)

    clear()
    policy.backward(rows, 1.3, g_logprob, g_entropy, clear)
    ours = {name: parameter.grad.clone() for name, parameter in policy.lm.named_parameters()}
    clear()
    loss, at = torch.zeros(()), 0
    for row in rows:
        logp = (policy.lm(torch.tensor([row.prompt + row.completion])).logits[0] / 1.3).log_softmax(-1)
        logp = logp[len(row.prompt) - 1 : -1]
        span = slice(at, at + len(row.completion))
        loss = loss + (g_logprob[span] * logp.gather(1, torch.tensor(row.completion)[:, None]).squeeze(1)).sum()
        loss = loss - (g_entropy[span] * (logp.exp() * logp).sum(-1)).sum()
        at += len(row.completion)
    loss.backward()
    for name, parameter in policy.lm.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-4, rtol=1e-4), name
    clear()
