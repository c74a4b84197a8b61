"""One completion at a time, without a cache, in plain words: what every way of decoding must agree with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.trainer.runs import ROOT
from trainer.config import ModelConfig
from trainer.policy import Policy
from trainer.rollout import Generation, GenRequest, SamplerSpec
from trainer.rollout.modifiers import AdaptiveTemperature, ForkTemperature, UniformChoice, VocabularyDropout
from trainer.rollout.randomness import seed_of, uniforms


def tiny() -> Policy:
    """Return the built-in tiny model."""
    torch.set_num_threads(1)
    found = Policy(ROOT / "trainer/builtin/countdown-tiny", ModelConfig(), torch.device("cpu"))
    found.budget = 2048
    return found


def stand_in(lm: Any, **changes: Any) -> Any:
    """Return a policy around a bare model, with what an engine uses of one."""
    head = lm.get_output_embeddings()
    return SimpleNamespace(
        lm=lm.eval(),
        device=torch.device("cpu"),
        config=ModelConfig(),
        vocabulary=head.weight.shape[0],
        stop_ids=frozenset(),
        logits=lambda hidden: torch.nn.functional.linear(hidden, head.weight, head.bias),
        hidden=lambda ids, **extra: lm.base_model(input_ids=ids, **extra),
        **changes,
    )


def requests(policy: Any, count: int, *, each: int = 2, longest: int = 10, **changes: Any) -> list[GenRequest]:
    """Return `each` requests for each of `count` prompts of different lengths, with fresh seeds and limits."""
    made: list[GenRequest] = []
    for group in range(count):
        prompt = tuple(random.choices(range(2, policy.vocabulary), k=random.randrange(1, 9)))
        for sample in range(each):
            seed = seed_of(random.getrandbits(32), sample)
            limit = random.randrange(1, longest + 1)
            made.append(GenRequest(len(made), group, sample, prompt, seed, **{"max_new": limit, **changes}))
    return made


@torch.no_grad()
def decode(policy: Any, request: GenRequest) -> Generation:
    """Return what a request must become: every token from a pass over all tokens before it, statistics in float64."""
    given = [*request.prompt_ids, *request.prefix_ids]
    ids, logprob, entropy, behaviour, reason = [], [], [], [], "length"
    while len(ids) < request.max_new and reason == "length":
        logits = policy.logits(policy.hidden(torch.tensor([given + ids]), use_cache=False)[0][0, -1:])[0].double()
        logp = (logits / (request.sampler.temperature or 1)).log_softmax(-1)
        position = np.array([len(request.prefix_ids) + len(ids)])
        number = uniforms(np.array([request.seed], dtype=np.uint64), position)[0]
        mass = truncated(bent(logp, request.sampler, int(position[0])), request.sampler)
        greedy = request.sampler.temperature == 0
        token = int(logp.argmax()) if greedy else pick(mass, number)
        ids.append(token)
        behaviour.append(0.0 if greedy else float(np.log(mass[token] / sum(mass))))
        logprob.append(logp[token].item())
        entropy.append(-(logp.exp() * logp).sum().item())
        if token in policy.stop_ids:
            reason = "stop"
    if request.sampler.plain:
        behaviour = []
    return Generation(request.id, ids, logprob, entropy, reason, behaviour=behaviour)  # type: ignore[arg-type]


def bent(logp: Tensor, sampler: SamplerSpec, position: int) -> Tensor:
    """Return the log-probs [V] after the sampler's modifiers and typical sampling, token by token in float64."""
    values = logp.tolist()
    for modifier in sampler.modifiers:
        values = _normalised(BENT[type(modifier)](values, modifier, position))
    if sampler.typical_p < 1:
        values = _normalised(_typical(values, sampler.typical_p))
    return torch.tensor(values, dtype=torch.float64)


def entropy_of(values: list[float]) -> float:
    return -math.fsum(math.exp(value) * value for value in values if value > -math.inf)


def _normalised(values: list[float]) -> list[float]:
    largest = max(values)
    total = largest + math.log(math.fsum(math.exp(value - largest) for value in values))
    return [value - total for value in values]


def _adaptive(values: list[float], m: AdaptiveTemperature, position: int) -> list[float]:
    h = (math.log(max(entropy_of(values), 1e-6)) - m.pivot) / (m.spread + 1e-6)
    scaled = min(max(h * (m.up if h > 0 else m.down), -1.0), 1.0)
    return [value / (1 + m.strength * scaled) for value in values]


def _fork(values: list[float], m: ForkTemperature, position: int) -> list[float]:
    return [value / (m.high if entropy_of(values) > m.threshold else m.low) for value in values]


def _uniform(values: list[float], m: UniformChoice, position: int) -> list[float]:
    if position < m.warm:
        return values
    top = sorted(range(len(values)), key=lambda token: -values[token])[: m.k]
    chosen = [token for token in top if math.exp(values[token]) >= m.floor] or top
    return [0.0 if token in chosen else -math.inf for token in range(len(values))]


def _dropout(values: list[float], m: VocabularyDropout, position: int) -> list[float]:
    seed = np.array([m.seed], dtype=np.uint64)
    stays = [token in m.spared or uniforms(seed, np.array([token]))[0] < m.keep for token in range(len(values))]
    left = [value if stay else -math.inf for value, stay in zip(values, stays, strict=True)]
    return left if max(left) > -math.inf else values


def _typical(values: list[float], mass: float) -> list[float]:
    entropy = entropy_of(values)
    away = [abs(-value - entropy) for value in values]
    before, last = 0.0, 0.0
    for token in sorted(range(len(values)), key=away.__getitem__):
        if before < mass:
            last = away[token]
        before += math.exp(values[token])
    return [value if far <= last else -math.inf for value, far in zip(values, away, strict=True)]


BENT: dict[type, Callable[..., list[float]]] = {
    AdaptiveTemperature: _adaptive,
    ForkTemperature: _fork,
    UniformChoice: _uniform,
    VocabularyDropout: _dropout,
}


def truncated(logp: Tensor, sampler: SamplerSpec) -> list[float]:
    """Return the probabilities [V] without what top-k, top-p and min-p leave out, token by token."""
    probability = logp.exp().tolist()
    order = sorted(range(len(probability)), key=lambda token: -probability[token])
    kept, before = [0.0] * len(probability), 0.0
    for rank, token in enumerate(order):
        inside = (rank < sampler.top_k or not sampler.top_k) and (before < sampler.top_p or sampler.top_p >= 1)
        if rank == 0 or (inside and probability[token] >= sampler.min_p * probability[order[0]]):
            kept[token] = probability[token]
        before += probability[token]
    return kept


def pick(probability: Sequence[float], number: float) -> int:
    """Return the first token at which the cumulative probability exceeds its share `number`."""
    cumulative = np.cumsum(probability)
    return int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))


def same(found: Sequence[Generation], expected: Sequence[Generation], tolerance: float = 1e-5) -> None:
    """Assert equal tokens and ends, and statistics within a tolerance in nats."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.id, ours.ids, ours.finish_reason) == (theirs.id, theirs.ids, theirs.finish_reason)
        assert np.allclose(ours.logprob, theirs.logprob, rtol=0, atol=tolerance)
        assert np.allclose(ours.entropy, theirs.entropy, rtol=0, atol=tolerance)
        assert len(ours.behaviour) == len(theirs.behaviour)
        assert np.allclose(ours.behaviour, theirs.behaviour, rtol=0, atol=tolerance)


def counted(policy: Any) -> tuple[list[tuple[int, int]], Callable[..., Any]]:
    """Return the shapes of all passes so far, and a `hidden` that writes them down."""
    shapes: list[tuple[int, int]] = []
    plain = policy.hidden

    def hidden(ids: Tensor, **extra: Any) -> Any:
        shapes.append((ids.shape[0], ids.shape[1]))
        return plain(ids, **extra)

    return shapes, hidden
