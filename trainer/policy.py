"""Policy: model and tokenizer, and the two passes over completions that give per-token statistics and gradients.

Hidden states go straight into `trainer.kernels`, so the [N, V] logits of a batch never exist. Micro-batches are
formed from a token budget and run in the way that suits the model (trainer/forward.py); neither changes the result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.distributed import World
from trainer.errors import ResourceError
from trainer.forward import choose
from trainer.kernels import TokenStats
from trainer.loading import load_model, load_tokenizer, out_of_memory, stop_ids, with_lora
from trainer.output import OutputLayer
from trainer.placement import Sharded, Whole
from trainer.rectangles import Trajectory, counting_places, rooted
from trainer.text import Detokenizer

P = ParamSpec("P")
T = TypeVar("T")
BLANK = Trajectory((0,), (0, 0))  # what a process runs, without gradient, while others have something to run


def with_weights(method: Callable[P, T]) -> Callable[P, T]:
    """Let a method of Policy run with all weights in this process."""

    @wraps(method)
    def run(*args: P.args, **options: P.kwargs) -> T:
        with args[0].gathered():  # type: ignore[attr-defined]
            return method(*args, **options)

    return run


class Policy:
    """A causal language model under training, on one device."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        device: torch.device,
        *,
        adapter: Path | None = None,
        world: World | None = None,
        sharded: bool = False,
    ) -> None:
        """Load from a folder; raises ConfigError where it holds no such model. `adapter` resumes LoRA weights.

        `sharded` spreads the weights over the processes of `world`.
        """
        self.config, self.device = config, device
        self.tokenizer = load_tokenizer(path)
        lm = load_model(path, config.dtype)
        self.lm = lm if sharded else lm.to(device)
        self.placement: Whole = Sharded(lm, world) if sharded and world else Whole(lm, world)
        self.adapted = with_lora(self.lm, config, adapter) if config.lora.enabled else None
        self.budget = 0  # tokens in one forward pass; set by the loop, halved when memory runs out
        self.output = OutputLayer(self.lm)
        self._calm()
        self.detokenizer = Detokenizer(self.tokenizer)
        self.stop_ids = stop_ids(self.lm, self.tokenizer)
        with self.gathered():
            self._check_head()
            self.forward = choose(
                self.lm, device, dtype=config.dtype, recomputes=config.gradient_checkpointing, gradients=not sharded
            )

    @property
    def head(self) -> Tensor:
        """Return the weight of the output layer, [V, H]."""
        return self.output.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states, [R, H] to [R, V], before the temperature."""
        return self.output.logits(hidden)

    @property
    def saved(self) -> Any:
        """Return the object whose `save_pretrained` writes what is trained."""
        return self.adapted or self.lm

    @property
    def vocabulary(self) -> int:
        return self.head.shape[0]

    @property
    def context(self) -> int | None:
        """Return the longest sequence the model takes, or None where it names no limit."""
        return getattr(self.lm.config, "max_position_embeddings", None)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained, in a fixed order, each once."""
        return [parameter for parameter in self.lm.parameters() if parameter.requires_grad]

    @property
    def total_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.lm.parameters())

    def hidden(self, ids: Tensor, **extra: Any) -> Any:
        """Run the decoder without its output layer; [B, T] to an output whose first item is [B, T, H]."""
        return self.lm.base_model(input_ids=ids, **extra)

    def gathered(self) -> AbstractContextManager[None]:
        """Hold all weights inside the context, for passes without gradients; all processes must enter it."""
        return self.placement.gathered()

    def base(self) -> AbstractContextManager[Any]:
        """Switch the adapters off inside the context: the policy as it was before LoRA training."""
        return self.adapted.disable_adapter() if self.adapted is not None else nullcontext()

    @with_weights
    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[Trajectory],
        temperature: float,
        *,
        names: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return logprob, entropy and the named statistics of every completion token that counts.

        float32 [n] each on the CPU.
        """
        sequences = rooted(sequences)
        starts, wanted = _starts(sequences), tuple(dict.fromkeys(("logprob", "entropy", *names)))
        while True:
            try:
                found = {name: torch.empty(starts[-1]) for name in wanted}
                for rows, where in self._microbatches(sequences, starts):
                    states, target = self._states(rows)
                    values = self.output.statistics(states, target, temperature, wanted, options or {})
                    for name, value in values.items():
                        found[name][where] = value.float().cpu()
                return found
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, sequences)

    @with_weights
    @torch.no_grad()
    def features(self, sequences: Sequence[Trajectory], temperature: float) -> Tensor:
        """Return the mean gradient of each completion's log-probs by the last hidden state: float32 [s, H], CPU.

        0 for a completion of which no token counts.
        """
        sequences, found = rooted(sequences), torch.zeros(len(sequences), self.head.shape[1])
        for rows in self.forward.pack(sequences, _filled(sequences), self.budget):
            states, target = self._states([sequences[i] for i in rows])
            lengths = torch.tensor([sequences[i].learned for i in rows], device=self.device)
            owner = torch.repeat_interleave(torch.arange(len(rows), device=self.device), lengths)
            found[rows] = self.output.features(states, target, owner, len(rows), temperature).float().cpu()
        return found

    @with_weights
    @torch.no_grad()
    def distance(self, reference: Policy, sequences: Sequence[Trajectory], temperature: float) -> Tensor:
        """Return the squared Hellinger distance to another policy at every token that counts, float32 [n], CPU.

        With LoRA the other policy is this one without its adapters.
        """
        sequences = rooted(sequences)
        starts = _starts(sequences)
        found = torch.empty(starts[-1])
        with reference.gathered():  # once: other processes may have another number of micro-batches
            for rows, where in self._microbatches(sequences, starts):
                ours = self._states(rows)[0]
                with reference.base():
                    theirs = reference._states(rows)[0]
                found[where] = self.output.hellinger(ours, reference.output, theirs, temperature).float().cpu()
        return found

    def backward(
        self,
        sequences: Sequence[Trajectory],
        temperature: float,
        logprob: Tensor,
        entropy: Tensor | None,
        clear: Callable[[], None],
        *,
        extra: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Add d(loss)/d(weights) to the gradients, given d(loss)/d(logprob) and d(loss)/d(entropy), [n] each.

        `extra` holds the same for EXTRAS by name, `options` what their computation depends on. Completions without any
        gradient do not enter the model, tokens without one not its head. Returns logprob and entropy of the tokens met
        on the way, float32 [n] on the CPU, NaN elsewhere. Where memory runs out, `clear` forgets the gradients so far
        and the pass starts again in smaller micro-batches.
        """
        sequences = rooted(sequences)
        starts = _starts(sequences)
        gradients = {"logprob": logprob, **({} if entropy is None else {"entropy": entropy}), **(extra or {})}
        live = torch.stack([gradient != 0 for gradient in gradients.values()]).any(0)  # [n]
        wanted = _any(starts, live)
        live = torch.cat([live, live.new_zeros(len(BLANK.completion))])
        met = torch.full((2, starts[-1]), torch.nan)
        while True:
            try:
                self._learning(True)
                for rows, where in self._even(list(self._microbatches(sequences, starts, wanted=wanted)), starts[-1]):
                    chosen = live[where].nonzero().squeeze(1)
                    where, places = where[chosen], chosen.to(self.device)
                    slopes = {name: gradient[where].to(self.device) for name, gradient in gradients.items()}
                    stats = self._carry(rows, places, temperature, slopes, options or {})
                    met[:, where] = torch.stack([stats.logprob, stats.entropy]).float().cpu()
                return dict(zip(("logprob", "entropy"), met, strict=True))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, sequences)
                clear()
            finally:
                self._learning(False)

    def _carry(
        self,
        rows: list[Trajectory],
        places: Tensor,
        temperature: float,
        slopes: dict[str, Tensor],
        options: Mapping[str, Any],
    ) -> TokenStats:
        """Send gradients by statistic back through head and model; return what the tokens met.

        They belong to the tokens at `places` [n] of one rectangle, [n] each.
        """

        def forward() -> tuple[Tensor, TokenStats]:
            states, target = self._states(rows)
            loss, stats = self.output.loss(states[places], target[places], temperature, slopes, options)
            # a blank too comes back past every layer: processes that share weights must communicate alike
            return loss + states.sum() * 0 if self.placement.sharded else loss, stats

        loss, stats = self.placement.run(forward)
        loss.backward()
        return stats

    def _states(self, rows: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """Return hidden states [n, H] and targets [n] of the tokens that count in one micro-batch.

        The model reads all tokens; those that are context end here.
        """
        target = torch.tensor([token for row in rows for token in row.counting(row.completion)], device=self.device)
        states, places = self.forward.states(self.lm.base_model, rows, self.device), counting_places(rows)
        return states if places is None else states.index_select(0, places.to(self.device)), target

    def _microbatches(
        self, sequences: Sequence[Trajectory], starts: list[int], wanted: list[bool] | None = None
    ) -> Iterator[tuple[list[Trajectory], Tensor]]:
        """Yield (completions, positions of their tokens in the flat order), longest first."""
        chosen = [i for i in _filled(sequences) if wanted is None or wanted[i]]
        for rows in self.forward.pack(sequences, chosen, self.budget):
            where = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in rows])
            yield [sequences[i] for i in rows], where

    def _even(
        self, batches: list[tuple[list[Trajectory], Tensor]], tokens: int
    ) -> list[tuple[list[Trajectory], Tensor]]:
        """Return as many micro-batches as every other process has, each of as many calls of the model.

        Where weights are gathered layer by layer, processes must go through the layers in step. What has to be added
        are blanks, whose tokens stand behind the `tokens` of the flat order. A rectangle of one-token completions gets
        one as well: it would have no second call behind its prompts.
        """
        if not self.placement.sharded:
            return batches
        where = torch.arange(tokens, tokens + len(BLANK.completion))
        for place, (rows, spots) in enumerate(batches):
            if all(len(row.completion) == 1 for row in rows):
                batches[place] = [*rows, BLANK], torch.cat([spots, where])
        return batches + [([BLANK], where)] * (self.placement.rounds(len(batches)) - len(batches))

    def _shrink(self, error: Exception, sequences: Sequence[Trajectory]) -> None:
        """Halve the token budget after running out of memory; re-raise what is something else."""
        if not out_of_memory(error):
            raise error
        if self.placement.sharded and torch.is_grad_enabled():  # other processes wait within this micro-batch
            raise ResourceError(
                f"a micro-batch of {self.budget} tokens does not fit into memory; lower "
                "optimiser.tokens_per_microbatch and resume the run"
            ) from error
        longest = max(len(row) for row in sequences)
        if self.budget <= longest:
            raise ResourceError(
                f"a single sequence of {longest} tokens does not fit into memory; lower "
                "sampling.max_completion_tokens, turn on model.gradient_checkpointing or model.lora, or take a smaller "
                "model"
            ) from error
        self.budget = max(longest, min(self.budget, sum(len(row) for row in sequences)) // 2)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _calm(self) -> None:
        """Switch dropout off (it would make the passes differ) and prepare gradient checkpointing where asked for."""
        self.lm.eval()
        if self.config.gradient_checkpointing:
            self.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.adapted is not None:
                self.lm.enable_input_require_grads()

    def _learning(self, on: bool) -> None:
        """Switch on what only the pass with gradients wants: recomputation, and dropout inside LoRA adapters.

        The flag `training` is set on single modules, not on their children: the model's own dropout stays off, and
        sampling keeps its key-value cache.
        """
        for name, module in self.lm.named_modules():
            if getattr(module, "gradient_checkpointing", False) or (
                self.adapted is not None and "lora_dropout" in name
            ):
                module.training = on

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compare the logits made here with the model's own: some models scale, cap or shift theirs."""
        ids = torch.arange(min(4, self.vocabulary), device=self.device)[None]
        hidden, logits = self.hidden(ids, use_cache=False)[0], self.lm(input_ids=ids, use_cache=False).logits
        self.output.check(hidden, logits, 1e-3 if self.config.dtype == "float32" else 0.1)


def _starts(sequences: Sequence[Trajectory]) -> list[int]:
    """Return where each completion's tokens that count begin in the flat order, and the total last."""
    starts = [0]
    for row in sequences:
        starts.append(starts[-1] + row.learned)
    return starts


def _filled(sequences: Sequence[Trajectory]) -> list[int]:
    """Return the indices of the completions that have a token that counts."""
    return [index for index, row in enumerate(sequences) if row.learned]


def _any(starts: list[int], live: Tensor) -> list[bool]:
    """Return which completions have a token that is live, [n] bool."""
    touched = live.cumsum(0)
    counts = torch.cat([torch.zeros(1, dtype=touched.dtype), touched])[torch.tensor(starts)]
    return (counts[1:] > counts[:-1]).tolist()
