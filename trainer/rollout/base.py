"""What every rollout engine takes and gives, and the strategies that plan waves of requests. No torch.

An engine runs a wave of token-level requests, each with its own sampler and a prefix to continue from, and returns one
Generation for each, in order. A strategy is pure: it plans a wave, sees what came back, and plans the next until done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplerSpec:
    """How tokens are drawn; temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True)
class TapSpec:
    """Which statistics come with each token: entropy of the raw policy, the k likeliest tokens, the MOMENTS."""

    entropy: Literal["none", "bounds", "exact"] = "exact"
    topk: int = 0
    moments: bool = False


@dataclass(frozen=True)
class GenRequest:
    """One completion to generate: prompt and prefix as token ids, never as text.

    `seed` names the request's random numbers: equal seeds draw equal numbers in every wave, process and attempt.
    `parent` and `fork_at` say which completion's first tokens the prefix is, for branching strategies.
    """

    id: int
    group: int
    sample: int
    prompt_ids: tuple[int, ...]
    seed: int
    max_new: int
    sampler: SamplerSpec = SamplerSpec()
    tap: TapSpec = TapSpec()
    prefix_ids: tuple[int, ...] = ()
    parent: int | None = None
    fork_at: int | None = None
    auxiliary: bool = False
    watch: bool = False


@dataclass(frozen=True)
class Chunk:
    """New tokens of a watched request, `first` counted from the start of the completion; log-probs and nats."""

    id: int
    first: int
    ids: list[int]
    logprob: list[float]
    entropy: list[float]


@dataclass(frozen=True)
class Generation:
    """What a request became; prefix tokens are not repeated.

    `logprob` is the raw policy's at the sampling temperature, before top-p, top-k and min-p; `entropy` is of the same
    distribution, in nats; `estimator` names how it was taken. `moments` holds the MOMENTS (trainer/statistics) of that
    distribution by name where the request's tap asked for them.
    """

    id: int
    ids: list[int]
    logprob: list[float]
    entropy: list[float]
    finish_reason: FinishReason
    estimator: Literal["exact", "bounds", "none"] = "exact"
    moments: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Caps:
    """What an engine can do."""

    exact_entropy: bool
    per_request_sampler: bool
    prefix: bool
    in_process: bool
    topk_max: int = 0
    step_control: bool = False
    moments: bool = False


class Engine(Protocol):
    """Generates. Weights are the trainer's after each `sync_weights`."""

    caps: Caps

    def run(
        self,
        requests: Sequence[GenRequest],
        on_chunk: Callable[[Sequence[Chunk]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Generation]:
        """Return one Generation for each request, in order; watched requests are reported in chunks on the way."""
        ...

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return the engine's own statistics of the prefix tokens of each request, teacher-forced."""
        ...

    def sync_weights(self) -> None:
        """Take over the trainer's weights."""
        ...

    def probe(self) -> float:
        """Return the largest difference between the engine's and the trainer's log-probs on a fixed text, nats."""
        ...


class Strategy(Protocol):
    """Plans waves; `next_wave` returns an empty list when the step's rollouts are complete."""

    def first_wave(self) -> list[GenRequest]: ...

    def next_wave(self, done: Sequence[Generation]) -> list[GenRequest]: ...


@dataclass
class Groups:
    """The plain strategy: `samples` completions of each prompt, of some as many again at another temperature."""

    prompts: Sequence[GenRequest]  # one template for each prompt
    samples: int
    auxiliary_prompts: frozenset[int] = frozenset()  # groups that get the extra wave
    auxiliary_temperature: float = 1.0
    seed_of: Callable[[int, int, bool], int] = field(default=lambda group, sample, auxiliary: 0)
    id_of: Callable[[int, int, bool], int] = field(default=lambda group, sample, auxiliary: 0)
    watched: Callable[[int, int], bool] = field(default=lambda group, sample: False)

    def first_wave(self) -> list[GenRequest]:
        """Return all requests at once: the extra completions do not depend on the main ones."""
        main = [self._request(prompt, sample, False) for prompt in self.prompts for sample in range(self.samples)]
        chosen = [prompt for prompt in self.prompts if prompt.group in self.auxiliary_prompts]
        return main + [self._request(prompt, sample, True) for prompt in chosen for sample in range(self.samples)]

    def next_wave(self, done: Sequence[Generation]) -> list[GenRequest]:
        return []

    def _request(self, prompt: GenRequest, sample: int, auxiliary: bool) -> GenRequest:
        sampler = replace(prompt.sampler, temperature=self.auxiliary_temperature) if auxiliary else prompt.sampler
        return replace(
            prompt,
            id=self.id_of(prompt.group, sample, auxiliary),
            sample=sample,
            seed=self.seed_of(prompt.group, sample, auxiliary),
            sampler=sampler,
            auxiliary=auxiliary,
            watch=not auxiliary and self.watched(prompt.group, sample),
        )
