"""Policy: model and tokenizer, and the two passes over completions that give per-token statistics and gradients.

Hidden states go straight into `trainer.kernels`, so the [N, V] logits of a batch never exist. Micro-batches are
rectangles (trainer/rectangles.py) formed from a token budget; they never change the result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.errors import ConfigError, ResourceError
from trainer.kernels import (
    CHUNK_BYTES,
    EXTRAS,
    TokenStats,
    gradient_features,
    linear_extras,
    linear_logprob_entropy,
    squared_hellinger,
)
from trainer.loading import load_model, load_tokenizer, out_of_memory, stop_ids, with_lora
from trainer.rectangles import Trajectory, pack, shareable, shared_states, whole_states
from trainer.statistics import MOMENTS
from trainer.text import Detokenizer


class Policy:
    """A causal language model under training, on one device."""

    def __init__(self, path: Path, config: ModelConfig, device: torch.device, *, adapter: Path | None = None) -> None:
        """Load from a folder; raises ConfigError where it holds no such model. `adapter` resumes LoRA weights."""
        self.config, self.device = config, device
        self.tokenizer = load_tokenizer(path)
        self.lm = load_model(path, config.dtype).to(device)
        self.adapted = with_lora(self.lm, config, adapter) if config.lora.enabled else None
        self.budget = 0  # tokens in one forward pass; set by the loop, halved when memory runs out
        self.contract, self.room = "auto", "auto"  # how gradients pass the head, and what computes it (ResourcesConfig)
        self._calm()
        self.detokenizer = Detokenizer(self.tokenizer)
        self.stop_ids = stop_ids(self.lm, self.tokenizer)
        self._check_head()
        # recomputation in the backward pass would run on a cache that has moved on
        self.shares = not config.gradient_checkpointing and shareable(
            self.lm.base_model, self.vocabulary, device, 1e-4 if config.dtype == "float32" else 0.05
        )

    @property
    def head(self) -> Tensor:
        """Return the weight of the output layer, [V, H]."""
        return self.lm.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        """Return the bias of the output layer, [V], or None."""
        return getattr(self.lm.get_output_embeddings(), "bias", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the raw logits of hidden states, [R, H] to [R, V]."""
        return torch.nn.functional.linear(hidden, self.head, self.head_bias)

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

    def base(self) -> AbstractContextManager[Any]:
        """Switch the adapters off inside the context: the policy as it was before LoRA training."""
        return self.adapted.disable_adapter() if self.adapted is not None else nullcontext()

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[Trajectory],
        temperature: float,
        *,
        names: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return logprob, entropy and the named MOMENTS and EXTRAS of every completion token: float32 [n] on the CPU.

        "gradient_feature" gives [s, H], one vector a completion.
        """
        starts, extra = _starts(sequences), [name for name in names if name in EXTRAS]
        moments = bool(set(names) & set(MOMENTS))
        plain = ("logprob", "entropy", *MOMENTS) if moments else ("logprob", "entropy")
        while True:
            try:
                found = {name: torch.empty(starts[-1]) for name in (*plain, *extra)}
                for rows, where in self._microbatches(sequences, starts):
                    states, target = self._states(rows)
                    stats = self._statistics(states, target, temperature, moments=moments)
                    values = {name: getattr(stats, name) for name in plain}
                    if extra:
                        values |= self._extras(states, target, temperature, extra, options or {})
                    for name, value in values.items():
                        found[name][where] = value.float().cpu()
                return found
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, sequences)

    @torch.no_grad()
    def features(self, sequences: Sequence[Trajectory], temperature: float) -> Tensor:
        """Return the mean gradient of each completion's log-probs by the last hidden state: float32 [s, H], CPU."""
        found = torch.zeros(len(sequences), self.head.shape[1])
        for rows in pack(sequences, _filled(sequences), self.budget, shared=self.shares):
            states, target = self._states([sequences[i] for i in rows])
            lengths = torch.tensor([len(sequences[i].completion) for i in rows], device=self.device)
            owner = torch.repeat_interleave(torch.arange(len(rows), device=self.device), lengths)
            mean = gradient_features(
                states, self.head, target, owner, len(rows),
                temperature=temperature, bias=self.head_bias, chunk_bytes=CHUNK_BYTES,
            )  # fmt: skip
            found[rows] = mean.float().cpu()
        return found

    @torch.no_grad()
    def distance(self, reference: Policy, sequences: Sequence[Trajectory], temperature: float) -> Tensor:
        """Return the squared Hellinger distance to another policy at every completion token, float32 [n] on the CPU.

        With LoRA the other policy is this one without its adapters.
        """
        starts = _starts(sequences)
        found = torch.empty(starts[-1])
        for rows, where in self._microbatches(sequences, starts):
            ours = self._states(rows)[0], self.head, self.head_bias
            with reference.base():
                theirs = reference._states(rows)[0], reference.head, reference.head_bias
            found[where] = (
                squared_hellinger(ours, theirs, temperature=temperature, chunk_bytes=CHUNK_BYTES).float().cpu()
            )
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
        starts = _starts(sequences)
        gradients = {"logprob": logprob, **({} if entropy is None else {"entropy": entropy}), **(extra or {})}
        live = torch.stack([gradient != 0 for gradient in gradients.values()]).any(0)  # [n]
        wanted = _any(starts, live)
        met = torch.full((2, starts[-1]), torch.nan)
        while True:
            try:
                self._learning(True)
                for rows, where in self._microbatches(sequences, starts, wanted=wanted):
                    states, target = self._states(rows)
                    chosen = live[where].nonzero().squeeze(1)
                    where, places = where[chosen], chosen.to(self.device)
                    slopes = {name: gradient[where].to(self.device) for name, gradient in gradients.items()}
                    stats = self._carry(states[places], target[places], temperature, slopes, options or {})
                    met[:, where] = torch.stack([stats.logprob, stats.entropy]).float().cpu()
                return dict(zip(("logprob", "entropy"), met, strict=True))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, sequences)
                clear()
            finally:
                self._learning(False)

    def _carry(
        self,
        states: Tensor,
        target: Tensor,
        temperature: float,
        slopes: dict[str, Tensor],
        options: Mapping[str, Any],
    ) -> TokenStats:
        """Send the gradients of these rows by statistic, [n] each, back through head and model; return what they met.

        Those by log-prob and entropy are known beforehand, so the fused contract turns a chunk of logits into gradients
        while it is there; rarer statistics recompute theirs.
        """
        slopes = dict(slopes)
        g_logprob, g_entropy = slopes.pop("logprob"), slopes.pop("entropy", None)
        outputs, gradients = list[Tensor](), list[Tensor]()
        if self.contract == "fused":
            from trainer.kernels import linear_token_loss  # type: ignore[attr-defined]

            total, stats = linear_token_loss(
                states, self.head, target, _weighted(g_logprob, g_entropy), room=self.room,
                temperature=temperature, bias=self.head_bias,
            )  # fmt: skip
            outputs.append(total)
            gradients.append(torch.ones_like(total))
        else:
            stats = self._statistics(states, target, temperature)
            outputs.append(stats.logprob)
            gradients.append(g_logprob.to(stats.logprob))
            if g_entropy is not None:
                outputs.append(stats.entropy)
                gradients.append(g_entropy.to(stats.entropy))
        if slopes:
            values = self._extras(states, target, temperature, list(slopes), options)
            outputs += values.values()
            gradients += [slopes[name].to(value) for name, value in values.items()]
        torch.autograd.backward(outputs, gradients)
        return replace(stats, logprob=stats.logprob.detach(), entropy=stats.entropy.detach())

    def _states(self, rows: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """Return hidden states [n, H] and targets [n] of the completion tokens of one rectangle."""
        run = shared_states if self.shares else whole_states
        target = torch.tensor([token for row in rows for token in row.completion], device=self.device)
        return run(self.lm.base_model, rows, self.device), target

    def _statistics(self, states: Tensor, target: Tensor, temperature: float, *, moments: bool = False) -> TokenStats:
        return linear_logprob_entropy(
            states, self.head, target, temperature=temperature, bias=self.head_bias, moments=moments
        )

    def _extras(
        self, states: Tensor, target: Tensor, temperature: float, names: list[str], options: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        return linear_extras(
            states, self.head, target,
            names=names, options=options, temperature=temperature, bias=self.head_bias, chunk_bytes=CHUNK_BYTES,
        )  # fmt: skip

    def _microbatches(
        self, sequences: Sequence[Trajectory], starts: list[int], wanted: list[bool] | None = None
    ) -> Iterator[tuple[list[Trajectory], Tensor]]:
        """Yield (completions, positions of their tokens in the flat order), longest first."""
        chosen = [i for i in _filled(sequences) if wanted is None or wanted[i]]
        for rows in pack(sequences, chosen, self.budget, shared=self.shares):
            where = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in rows])
            yield [sequences[i] for i in rows], where

    def _shrink(self, error: Exception, sequences: Sequence[Trajectory]) -> None:
        """Halve the token budget after running out of memory; re-raise what is something else."""
        if not out_of_memory(error):
            raise error
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
        """Compare hidden state times head with the model's own logits: some models scale, cap or shift them."""
        ids = torch.arange(min(4, self.vocabulary), device=self.device)[None]
        ours = self.logits(self.hidden(ids, use_cache=False)[0]).float()
        theirs = self.lm(input_ids=ids, use_cache=False).logits.float()
        tolerance = 1e-3 if self.config.dtype == "float32" else 0.1
        if ours.shape != theirs.shape or not torch.allclose(
            ours, theirs, atol=tolerance * (1 + theirs.abs().max().item())
        ):
            raise ConfigError(
                f"model.source: {type(self.lm).__name__} changes its logits after the output layer (a cap or a scale), "
                "which is not supported; choose another model",
                "model.source",
            )


def _starts(sequences: Sequence[Trajectory]) -> list[int]:
    """Return where each completion's tokens begin in the flat order, and the total last."""
    starts = [0]
    for row in sequences:
        starts.append(starts[-1] + len(row.completion))
    return starts


def _filled(sequences: Sequence[Trajectory]) -> list[int]:
    """Return the indices of the completions that have a token."""
    return [index for index, row in enumerate(sequences) if row.completion]


def _any(starts: list[int], live: Tensor) -> list[bool]:
    """Return which completions have a token that is live, [n] bool."""
    touched = live.cumsum(0)
    counts = torch.cat([torch.zeros(1, dtype=touched.dtype), touched])[torch.tensor(starts)]
    return (counts[1:] > counts[:-1]).tolist()


def _weighted(g_logprob: Tensor, g_entropy: Tensor | None) -> Callable[[TokenStats, Tensor], Tensor]:
    """Return the token loss whose gradients by log-prob and entropy are these, [n] each."""

    def loss(stats: TokenStats, rows: Tensor) -> Tensor:
        value = g_logprob[rows].to(stats.logprob) * stats.logprob
        return value if g_entropy is None else value + g_entropy[rows].to(stats.entropy) * stats.entropy

    return loss
