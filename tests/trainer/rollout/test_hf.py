"""The hf engine: exact statistics, and tokens that depend on the request alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainer.rollout.naive import counted, decode, requests, same, tiny
from trainer.errors import ConfigError, ResourceError
from trainer.policy import Policy
from trainer.rollout import SamplerSpec
from trainer.rollout.hf import HfEngine
from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, UniformChoice, VocabularyDropout

SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(temperature=0),
    SamplerSpec(temperature=0.6),
    SamplerSpec(temperature=1.7, min_p=0.1),
    SamplerSpec(top_p=0.8),
    SamplerSpec(top_k=3),
    SamplerSpec(temperature=1.2, top_p=0.9, top_k=5, min_p=0.02),
    SamplerSpec(temperature=0.9, typical_p=0.7),
    SamplerSpec(modifiers=(UniformChoice(4, 0.05, 2),)),
    SamplerSpec(modifiers=(AdaptiveTemperature(-0.5, 0.8, 0.6, 0.3, 0.4), ForkTemperature(1.0, 1.3, 0.8)), top_p=0.95),
    SamplerSpec(modifiers=(VocabularyDropout(0.7, 9, (1, 2)),), typical_p=0.9, min_p=0.01),
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Draw fresh requests each time; a failing seed can be put back here."""
    chosen = random.SystemRandom().getrandbits(32)
    print(f"random.seed({chosen})")
    random.seed(chosen)


def engine(policy: Policy, rows: int = 256) -> HfEngine:
    made = HfEngine(policy)
    made.rows = rows
    return made


@pytest.mark.parametrize("rows", [1, 2, 5, 256])
def test_any_number_of_slots_gives_what_one_completion_at_a_time_gives(policy, rows):
    asked = [replace(request, sampler=random.choice(SAMPLERS)) for request in requests(policy, 6, longest=20)]
    same(engine(policy, rows).run(asked), [decode(policy, request) for request in asked])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_every_sampler_gives_what_one_completion_at_a_time_gives(policy, sampler):
    asked = requests(policy, 4, sampler=sampler)
    same(engine(policy, 3).run(asked), [decode(policy, request) for request in asked])


def test_order_and_company_do_not_change_a_request_s_tokens(policy):
    asked = requests(policy, 8)
    together = engine(policy).run(asked)
    shuffled = random.sample(asked, len(asked))
    same(engine(policy, 4).run(shuffled), [together[request.id] for request in shuffled])
    alone = random.choice(asked)
    same(engine(policy).run([alone]), [together[alone.id]])


def test_equal_seeds_draw_equal_tokens(policy):
    one = requests(policy, 1, each=1, max_new=12)[0]
    found = engine(policy, 3).run([replace(one, id=index) for index in range(7)])
    assert {tuple(got.ids) for got in found} == {tuple(decode(policy, one).ids)}


def test_a_prefix_is_continued_as_if_it_had_just_been_sampled(policy):
    asked = requests(policy, 5, max_new=10)
    whole = engine(policy).run(asked)
    cuts = [random.randrange(0, len(got.ids)) for got in whole]
    parts = [
        replace(request, prefix_ids=tuple(got.ids[:cut]), max_new=10 - cut)
        for request, got, cut in zip(asked, whole, cuts, strict=True)
    ]
    for got, part, cut in zip(whole, engine(policy, 3).run(parts), cuts, strict=True):
        assert part.ids == got.ids[cut:]
        assert part.entropy == pytest.approx(got.entropy[cut:], abs=1e-5)


def test_greedy_is_what_transformers_generates(policy):
    asked = requests(policy, 5, sampler=SamplerSpec(temperature=0))
    for request, got in zip(asked, engine(policy, 4).run(asked), strict=True):
        prompt = torch.tensor([request.prompt_ids])
        out = policy.lm.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.max_new, do_sample=False
        )
        assert got.ids == out[0, len(request.prompt_ids) :].tolist()


def test_a_completion_ends_at_its_end_token_or_its_limit(policy):
    for request, got in zip(asked := requests(policy, 8), engine(policy, 5).run(asked), strict=True):
        ended = got.ids[-1] in policy.stop_ids
        assert got.finish_reason == ("stop" if ended else "length")
        assert len(got.ids) <= request.max_new
        assert ended or len(got.ids) == request.max_new
        assert not policy.stop_ids & set(got.ids[:-1])


def test_nothing_asked_and_no_room_to_answer(policy):
    assert engine(policy).run([]) == []
    none, some = requests(policy, 1, sampler=SamplerSpec(temperature=0))
    found = engine(policy).run([replace(none, max_new=0), some])
    assert (found[0].ids, found[0].finish_reason) == ([], "length")
    assert found[1].ids == decode(policy, some).ids


def test_a_request_without_any_token_is_refused(policy):
    full, empty = requests(policy, 1)
    with pytest.raises(ConfigError, match=r"request 1: its prompt has no tokens.*write a prompt"):
        engine(policy).run([full, replace(empty, prompt_ids=())])
    bare = replace(full, prompt_ids=(), prefix_ids=full.prompt_ids)
    same(engine(policy).run([bare]), [decode(policy, bare)])


def test_equal_prompts_are_run_once(policy, monkeypatch):
    shapes, hidden = counted(policy)
    asked = random.sample(requests(policy, 5, each=4, longest=12), 20)
    used = engine(policy, 4)
    expected = used.run(asked)
    monkeypatch.setattr(policy, "hidden", hidden)
    same(used.run(asked), expected)
    steps = sum(len(got.ids) - 1 for got in expected)  # the first token comes with the prompt
    assert sum(rows for rows, _ in shapes) == len({request.prompt_ids for request in asked}) + steps


def test_rows_never_idle_while_requests_wait(policy, monkeypatch):
    asked, used, rounds = requests(policy, 6, each=3, longest=15), engine(policy, 4), []
    used.run(asked[:1])
    plain = policy.logits
    monkeypatch.setattr(policy, "logits", lambda states: rounds.append(len(states)) or plain(states))
    found = used.run(asked)
    assert sum(rounds) == sum(len(got.ids) for got in found)
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[0] == 4


def test_watched_requests_are_reported_whole_in_order_and_others_not_at_all(policy, monkeypatch):
    monkeypatch.setattr("trainer.rollout.ledger.CHUNK_SECONDS", random.choice([0, 1e-3, 10]))
    asked = [replace(request, watch=request.id % 3 == 0) for request in requests(policy, 6)]
    heard: dict[int, list[tuple[int, float, float]]] = {request.id: [] for request in asked if request.watch}
    progress: list[int] = []

    def listen(chunks):
        for chunk in chunks:
            assert chunk.first == len(heard[chunk.id])
            heard[chunk.id] += zip(chunk.ids, chunk.logprob, chunk.entropy, strict=True)

    got = engine(policy, 3).run(asked, listen, lambda done, total: progress.append(done) or None)
    assert heard == {
        index: list(zip(got[index].ids, got[index].logprob, got[index].entropy, strict=True)) for index in heard
    }
    assert progress == sorted(progress)
    assert progress[-1] == len(asked)


def test_chunks_of_a_continuation_count_from_the_start_of_the_completion(policy):
    one = replace(requests(policy, 1, each=1, max_new=3)[0], prefix_ids=(4, 5, 6, 7), watch=True)
    firsts: list[int] = []
    engine(policy).run([one], lambda chunks: firsts.extend(chunk.first for chunk in chunks))
    assert firsts[0] == 4


def test_scoring_a_prefix_gives_the_sampler_s_own_numbers(policy):
    asked = [replace(r, sampler=SamplerSpec(random.choice([0.0, 0.7, 1.0]))) for r in requests(policy, 4)]
    found = engine(policy).run(asked)
    scored = engine(policy).score([replace(r, prefix_ids=tuple(g.ids)) for r, g in zip(asked, found, strict=True)])
    for got, again in zip(found, scored, strict=True):
        assert (again.id, again.ids) == (got.id, got.ids)
        assert again.logprob == pytest.approx(got.logprob, abs=1e-5)
        assert again.entropy == pytest.approx(got.entropy, abs=1e-5)


# -- memory -----------------------------------------------------------------------------------------------------------


def short_of_memory(policy, monkeypatch, *, most: int, calls: int = 0):
    """Let passes over more than `most` rows fail after the first `calls`, as the CPU's allocator does."""
    shapes, hidden = counted(policy)

    def failing(ids, **extra):
        out = hidden(ids, **extra)
        if len(ids) > most and len(shapes) > calls:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return out

    monkeypatch.setattr(policy, "hidden", failing)


def test_running_out_of_memory_halves_the_rows_and_loses_no_token(policy, monkeypatch):
    monkeypatch.setattr(policy, "stop_ids", frozenset())  # all sixteen are under way when it happens
    asked = [replace(request, watch=True) for request in requests(policy, 8, max_new=12)]
    used = engine(policy)
    expected = used.run(asked)
    short_of_memory(policy, monkeypatch, most=5, calls=random.randrange(1, 6))
    heard: dict[int, list[int]] = {}

    def listen(chunks):
        for chunk in chunks:
            assert chunk.first == len(heard.setdefault(chunk.id, []))
            heard[chunk.id] += chunk.ids

    monkeypatch.setattr("trainer.rollout.ledger.CHUNK_SECONDS", 0)
    same(used.run(asked, listen), expected)
    assert used.rows == 4
    assert heard == {got.id: got.ids for got in expected}


def test_one_row_too_many_is_one_sentence_with_the_way_out(policy, monkeypatch):
    used = engine(policy)
    used.run(requests(policy, 1))
    short_of_memory(policy, monkeypatch, most=0)
    with pytest.raises(ResourceError, match=r"sampling\.max_completion_tokens"):
        used.run(requests(policy, 4))


def test_other_errors_are_not_taken_for_a_lack_of_memory(policy, monkeypatch):
    used = engine(policy)
    asked = requests(policy, 1)
    used.run(asked)
    monkeypatch.setattr(policy, "hidden", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        used.run(asked)


def test_the_rows_fit_the_key_value_budget(policy, monkeypatch):
    monkeypatch.setattr(policy, "stop_ids", frozenset())  # one that ends with its first token is in no later step
    used = engine(policy)
    asked = requests(policy, 10, max_new=10)
    used.run(asked[:1])
    widest = max(len(request.prompt_ids) for request in asked) + 10
    per_token = 2 * 3 * 96 * 4  # keys and values, layers, width, bytes
    monkeypatch.setattr("trainer.rollout.hf.CPU_CACHE_BYTES", per_token * widest * 7 + 1)
    shapes, hidden = counted(policy)
    monkeypatch.setattr(policy, "hidden", hidden)
    used.run(asked)
    assert max(rows for rows, width in shapes if width == 1) == 7


def test_float_statistics_are_plain_numbers(policy):
    got = engine(policy).run(requests(policy, 1))[0]
    assert all(type(value) is float and np.isfinite(value) for value in [*got.logprob, *got.entropy])
    assert all(type(token) is int for token in got.ids)
