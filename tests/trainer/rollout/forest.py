"""A made-up policy for strategies: distributions that depend on the tokens before, and the loop that runs the waves."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from trainer.rollout import Done, Generation, GenRequest, Pick, Prompt, SamplerSpec, Scene, Strategy, TapSpec
from trainer.rollout.randomness import seed_of

STOP, VOCABULARY = 0, 12
TEXTS = ["", ",", " a", " be", " see", " the answer", " so", " wait", " é", " conclusion", " hm", " then"]


class Forest:
    """Draws tokens as an engine does: equal tokens before give equal distributions, equal seeds equal numbers."""

    def __init__(self, seed: int, *, samples: int, prompts: int = 2, max_new: int = 10, sharpness: float = 2.0) -> None:
        self.seed, self.samples, self.max_new, self.sharpness = seed, samples, max_new, sharpness
        self.prompts = tuple(Prompt(group, (seed % 97 + 1, group)) for group in range(prompts))
        self.waves: list[list[GenRequest]] = []

    def scene(self, **changes: Any) -> Scene:
        return Scene(
            step=3, prompts=self.prompts, samples=self.samples, max_new=self.max_new, tap=TapSpec(),
            sampler_of=lambda sample: SamplerSpec(), seed_of=lambda *parts: seed_of(self.seed, *map(int, parts)),
            more=lambda wave: (), special_ids=frozenset({STOP}), **changes,
        )  # fmt: skip

    def logprobs(self, context: tuple[int, ...]) -> list[float]:
        dice = random.Random(f"{self.seed} {context}")
        logits = [dice.gauss(0, self.sharpness) for _ in range(VOCABULARY)]
        total = math.log(math.fsum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    def generate(self, request: GenRequest) -> Generation:
        ids, logprob, entropy, tops = list[int](), list[float](), list[float](), list[list[int]]()
        top_logprob: list[list[float]] = []
        while len(ids) < request.max_new and (not ids or ids[-1] != STOP):
            known = self.logprobs((*request.prompt_ids, *request.prefix_ids, *ids))
            place = len(request.prefix_ids) + len(ids)
            ids += random.Random(f"{request.seed} {place}").choices(range(VOCABULARY), [math.exp(p) for p in known])
            logprob.append(known[ids[-1]])
            entropy.append(-math.fsum(math.exp(p) * p for p in known))
            ranked = sorted(range(VOCABULARY), key=lambda token: -known[token])[: request.tap.topk]
            tops.append(ranked)
            top_logprob.append([known[token] for token in ranked])
        reason = "stop" if ids and ids[-1] == STOP else "length"
        given = request.tap.topk > 0
        return Generation(
            request.id, ids, logprob, entropy, reason, top_ids=tops if given else [],
            top_logprob=top_logprob if given else [],
        )  # fmt: skip

    def play(self, strategy: Strategy) -> list[Pick]:
        """Run a strategy's waves; return what it would train on."""
        done: dict[int, Done] = {}
        wave = strategy.first_wave()
        while wave:
            self.waves.append(wave)
            for request in wave:
                assert request.id not in done
                done[request.id] = self.finished(request, self.generate(request), done)
            wave = strategy.next_wave(list(done.values()))
        return strategy.finish(list(done.values()))

    def finished(self, request: GenRequest, generation: Generation, done: dict[int, Done]) -> Done:
        ids = (*request.prefix_ids, *generation.ids)
        parent = done[request.parent] if request.parent is not None else None
        drawn = len(request.prefix_ids) - len(request.given_logprob)
        before = [*parent.logprob[:drawn], *request.given_logprob] if parent else []
        entropy = parent.entropy[: len(request.prefix_ids)] if parent else []
        made = told(ids, [*before, *generation.logprob], [*entropy, *generation.entropy], request=request)
        return replace(made, generation=generation)


def told(
    ids: tuple[int, ...], logprob: list[float], entropy: list[float], *, request: GenRequest | None = None, **made: Any
) -> Done:
    """Return a completion of these tokens with these statistics."""
    texts = [TEXTS[index] for index in ids]
    offsets = [len("".join(texts[:place]).encode()) for place in range(len(ids))]
    request = request or GenRequest(0, 0, 0, (1,), 1, 99)
    generation = Generation(request.id, list(ids), logprob, entropy, "stop", **made)
    return Done(request, generation, "".join(texts), offsets, ids, logprob, entropy)
