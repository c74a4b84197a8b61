"""What every rollout engine takes and gives, and the strategies that plan waves of requests. No torch.

An engine runs a wave of token-level requests, each with its own sampler and a prefix to continue from, and returns one
Generation for each, in order. A strategy is pure: it plans a wave, sees what came back, and plans the next until done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from trainer.rollout.modifiers import Modifier

FinishReason = Literal["stop", "length", "pruned"]  # pruned: a strategy cut it off


@dataclass(frozen=True)
class SamplerSpec:
    """How tokens are drawn; temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    modifiers: tuple[Modifier, ...] = ()  # applied in order to each token's logits, before truncation

    @property
    def plain(self) -> bool:
        """Return whether tokens come from the whole policy at its temperature: nothing bends or truncates it."""
        whole = self.top_p >= 1 and not self.top_k and not self.min_p and self.typical_p >= 1
        return whole and not self.modifiers


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
    `parent` and `fork_at` say which completion's first tokens the prefix is, for branching strategies. Prefix tokens
    behind `fork_at` were given instead of drawn; `given_logprob` are their raw log-probs. `watch` says that people may
    look at it while it grows.
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
    given_logprob: tuple[float, ...] = ()
    auxiliary: bool = False
    watch: bool = False


@dataclass(frozen=True)
class Chunk:
    """New tokens of a watched request, `first` counted from the start of the completion; log-probs and nats.

    Where entropy is known by bounds alone, `low` and `high` hold them for each token and `entropy` their middle.
    """

    id: int
    first: int
    ids: list[int]
    logprob: list[float]
    entropy: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


class Watcher(Protocol):
    """A hearer of chunks with a mind of its own: `run` may be given one as `on_chunk`.

    `wanted` holds the ids it wants to hear of now. It changes while requests run: an engine asks before each report,
    and tells a request that enters late from its first new token on. `ended` hears which requests are complete,
    wanted or not. An engine that knows neither reports every request with `watch`, as to any other callable.
    """

    @property
    def wanted(self) -> Collection[int]: ...

    def __call__(self, chunks: Sequence[Chunk]) -> None: ...

    def ended(self, ids: Sequence[int]) -> None: ...


@dataclass(frozen=True)
class Generation:
    """What a request became; prefix tokens are not repeated.

    `logprob` is the raw policy's at the sampling temperature, before modifiers, top-p, top-k, min-p and typical-p;
    `entropy` is of the same distribution, in nats; `estimator` names how it was taken. Where it is "bounds", `low` and
    `high` hold the interval that the likeliest tokens leave and `entropy` its middle. `behaviour` is the log-prob under
    the distribution really drawn from, empty where the sampler is plain. `moments` holds the MOMENTS
    (trainer/statistics) by name where the request's tap asked for them. `top_ids` and `top_logprob` hold the likeliest
    tokens of each place and their raw log-probs, likeliest first, at most as many as the tap's topk; empty where it
    asked for none or the engine gives none. `version` counts the weights it was drawn with: the number of updates
    behind them.
    """

    id: int
    ids: list[int]
    logprob: list[float]
    entropy: list[float]
    finish_reason: FinishReason
    estimator: Literal["exact", "bounds", "none"] = "exact"
    moments: dict[str, list[float]] = field(default_factory=dict)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    behaviour: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprob: list[list[float]] = field(default_factory=list)
    version: int = 0


@dataclass(frozen=True)
class Done:
    """A request that came back, as a strategy sees it: its text, and its grade where the strategy `grades`.

    `text` and `offsets` (where each token's text begins, UTF-8 bytes) are of prefix and new tokens together, and so are
    `ids`, `logprob` and `entropy`. `reward` is None where it was not graded or could not be.
    """

    request: GenRequest
    generation: Generation
    text: str
    offsets: list[int]
    ids: tuple[int, ...]
    logprob: list[float]
    entropy: list[float]
    reward: float | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Caps:
    """What an engine can do."""

    exact_entropy: bool
    per_request_sampler: bool
    prefix: bool
    in_process: bool
    topk_max: int = 0
    modifiers: bool = True
    moments: bool = False


class Engine(Protocol):
    """Generates. Weights are the trainer's after each `sync_weights`."""

    restarts: int  # how often it failed and was started anew

    @property
    def caps(self) -> Caps: ...

    def run(
        self,
        requests: Sequence[GenRequest],
        on_chunk: Callable[[Sequence[Chunk]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Generation]:
        """Return one Generation for each request, in order; watched requests are reported in chunks on the way.

        `on_chunk` may be a Watcher, which says itself what it wants to hear.
        """
        ...

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return the engine's own statistics of the prefix tokens of each request, teacher-forced."""
        ...

    def sync_weights(self, version: int) -> bool:
        """Take over the trainer's weights, after so many updates, unless it has them; return whether it copied any."""
        ...

    def rest(self) -> None:
        """Give memory back while the trainer learns; the next `sync_weights` takes it again."""
        ...

    def probe(self) -> float:
        """Return the largest difference between the engine's and the trainer's log-probs on a fixed text, nats."""
        ...

    def close(self) -> None:
        """Give back memory and processes; may be called twice."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt of this process's share: its group in the step, its token ids, and the name of its template."""

    group: int
    ids: tuple[int, ...]
    template: str = ""


@dataclass(frozen=True)
class Scene:
    """What a strategy plans a step with.

    `sampler_of(sample)` says how the group's sample of this number is drawn. `seed_of` makes a request's seed from
    whole numbers that tell it from every other of the step. `more(wave)`, wave from 1, gives further prompts, as many
    as `prompts`, with groups never used before in the step. `together` gives what every process passed to it, in their
    order; all must call it equally often.
    """

    step: int
    prompts: tuple[Prompt, ...]
    samples: int
    max_new: int
    sampler_of: Callable[[int], SamplerSpec]
    tap: TapSpec
    seed_of: Callable[..., int]
    more: Callable[[int], tuple[Prompt, ...]]
    special_ids: frozenset[int] = frozenset()
    watched: Callable[[int, int], bool] = field(default=lambda group, sample: False)
    auxiliary_groups: frozenset[int] = frozenset()  # groups sampled once more, at another temperature
    auxiliary_temperature: float = 1.0
    together: Callable[[Any], list[Any]] = field(default=lambda own: [own])

    def request(self, id: int, prompt: Prompt, sample: int, *seed: int, auxiliary: bool = False) -> GenRequest:
        """Return a request for a whole completion of a prompt, drawn as its sample number says."""
        sampler = self.sampler_of(sample)
        if auxiliary:
            sampler = replace(sampler, temperature=self.auxiliary_temperature)
        return GenRequest(
            id=id, group=prompt.group, sample=sample, prompt_ids=prompt.ids, seed=self.seed_of(*seed),
            max_new=self.max_new, sampler=sampler, tap=self.tap, auxiliary=auxiliary,
            watch=self.watched(prompt.group, sample),
        )  # fmt: skip

    def fork(
        self, id: int, parent: Done, at: int, sample: int, *seed: int, given: tuple[int, float] | None = None
    ) -> GenRequest:
        """Return a request that goes on from the first `at` tokens of a completion; token `at` is drawn anew.

        With `given`, a token and its raw log-prob, that token is taken there and drawing begins behind it.
        """
        old, own = parent.request, () if given is None else (given[0],)
        return replace(
            old, id=id, sample=sample, seed=self.seed_of(*seed), max_new=self.max_new - at - len(own),
            prefix_ids=parent.ids[:at] + own, parent=old.id, fork_at=at, sampler=self.sampler_of(sample),
            given_logprob=() if given is None else (given[1],), watch=self.watched(old.group, sample),
        )  # fmt: skip


@dataclass(frozen=True)
class Pick:
    """A completion that enters the step: its place there, and which of its tokens count.

    `prefix` says whether tokens taken from the parent are trained on: "masked" keeps them out of the batch, "counted"
    lets them in once for each completion that passes through them. One that does not `learn` is in the step, measured
    and recorded, and gives no gradient.
    """

    done: Done
    group: int
    sample: int
    prefix: Literal["masked", "counted"] = "masked"
    auxiliary: bool = False
    learns: bool = True


class Strategy(Protocol):
    """Plans waves of requests of this process's prompts. Request ids are its own, unique within process and step.

    `grades` says whether `next_wave` and `finish` read rewards, `most` how many completions a group has at most.
    """

    @property
    def grades(self) -> bool: ...

    @property
    def most(self) -> int: ...

    def first_wave(self) -> list[GenRequest]: ...

    def next_wave(self, done: Sequence[Done]) -> list[GenRequest]:
        """Return what to generate next, given all that came back so far; empty where the step is complete."""
        ...

    def spent(self) -> Collection[int]:
        """Return the ids of requests that this strategy wants to hear of no more; they are forgotten, not picked."""
        ...

    def finish(self, done: Sequence[Done]) -> list[Pick]:
        """Return what the step trains on: (group, auxiliary, sample) are unique, groups those of `Scene.prompts`."""
        ...

    def figures(self) -> dict[str, float]:
        """Return the strategy's own figures of the step, by metric name `rollout/...`."""
        ...
