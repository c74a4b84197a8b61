"""The `hf` engine: a batched decode loop over the training model itself. Any device; exact entropy; nothing to sync.

Equal prompts are prefilled once and their cache rows copied; prompts are padded on the left; finished rows leave the
batch, so a few long completions do not pay for all. Waves are cut to what the key-value cache may take.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import ResourceError
from trainer.policy import Policy, Trajectory, out_of_memory
from trainer.rollout.base import Caps, Chunk, Generation, GenRequest
from trainer.rollout.sampling import Samplers, uniforms

CHUNK_SECONDS = 0.05  # watched tokens are reported this often at most
CPU_CACHE_BYTES = 2 << 30
GPU_CACHE_SHARE = 0.4  # of free memory
COMPACT_BELOW = 0.9  # share of unfinished rows at which finished ones are dropped

OnChunk = Callable[[Sequence[Chunk]], None]
OnProgress = Callable[[int, int], None]


class HfEngine:
    """Generates with the policy's own model."""

    caps = Caps(exact_entropy=True, per_request_sampler=True, prefix=True, in_process=True)

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._cache_bytes = 0  # learned by running out of memory; 0 asks the device

    def sync_weights(self) -> None:
        """Nothing to do: the weights are the trainer's."""

    def probe(self) -> float:
        """Return 0: there is one model."""
        return 0.0

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return statistics of the prefix tokens, at each request's temperature."""
        found = []
        for request in requests:
            tokens = Trajectory(request.prompt_ids, request.prefix_ids)
            stats = self.policy.score([tokens], request.sampler.temperature or 1.0)
            found.append(
                Generation(
                    request.id, list(request.prefix_ids), stats["logprob"].tolist(), stats["entropy"].tolist(), "stop"
                )
            )
        return found

    @torch.no_grad()
    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Return one Generation for each request, in order; raises ResourceError where a single one does not fit."""
        found: dict[int, Generation] = {}
        todo = sorted(range(len(requests)), key=lambda i: _width(requests[i]))
        while todo:
            take = self._fitting([requests[i] for i in todo])
            try:
                wave = _Wave(self.policy, [requests[i] for i in todo[:take]], on_chunk)
                done = wave.run(_progress(on_progress, len(found), len(requests)))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, requests[todo[0]], take)
                continue
            found.update(zip(todo[:take], done, strict=True))
            todo = todo[take:]
        return [found[i] for i in range(len(requests))]

    def _fitting(self, requests: Sequence[GenRequest]) -> int:
        """Return how many of the requests, shortest first, the cache takes at once."""
        budget = self._cache_bytes or self._free_bytes()
        row = _cache_bytes_per_token(self.policy.lm)
        for count, request in enumerate(requests, 1):
            if count * row * (_width(request) + max(r.max_new for r in requests[:1])) > budget:
                return max(1, count - 1)
        return len(requests)

    def _free_bytes(self) -> int:
        if self.policy.device.type != "cuda":
            return CPU_CACHE_BYTES
        return int(torch.cuda.mem_get_info(self.policy.device)[0] * GPU_CACHE_SHARE)

    def _shrink(self, error: Exception, request: GenRequest, rows: int) -> None:
        if not out_of_memory(error):
            raise error
        if rows == 1:
            raise ResourceError(
                "one completion does not fit into memory while sampling; lower sampling.max_completion_tokens or use a "
                "smaller model"
            ) from error
        self._cache_bytes = rows * _cache_bytes_per_token(self.policy.lm) * (_width(request) + request.max_new) // 2
        gc.collect()
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass
class _Wave:
    """One batch of rows decoded together."""

    policy: Policy
    requests: Sequence[GenRequest]
    on_chunk: OnChunk | None
    cache: Any = None
    mask: Tensor | None = None  # [R, T] over the cache; None where no row is padded
    sent: dict[int, int] = field(default_factory=dict)
    reported: float = 0.0

    def run(self, on_progress: Callable[[int], None]) -> list[Generation]:
        device, requests = self.policy.device, self.requests
        longest = max(request.max_new for request in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        logprob, entropy = torch.zeros(len(requests), longest), torch.zeros(len(requests), longest)
        lengths, stopped = np.zeros(len(requests), dtype=np.int64), np.zeros(len(requests), dtype=bool)
        limits = np.array([request.max_new for request in requests])
        first = np.array([len(request.prefix_ids) for request in requests])
        seeds = np.array([request.seed for request in requests], dtype=np.uint64)
        stop = np.array(sorted(self.policy.stop_ids), dtype=np.int64)

        rows = np.arange(len(requests))  # which request each row of the batch is
        going = np.ones(len(requests), dtype=bool)  # which rows of the batch are unfinished
        samplers = Samplers([request.sampler for request in requests], device)
        hidden, position = self._prefill()  # [R, H], [R]
        for step in range(longest):
            number = torch.from_numpy(uniforms(seeds[rows], first[rows] + step)).to(device)
            token, lp, nats = samplers.sample(self.policy.logits(hidden), number)
            chosen = token.cpu()
            live = torch.from_numpy(rows[going])
            ids[live, step], logprob[live, step], entropy[live, step] = (
                chosen[going], lp.cpu()[going], nats.cpu()[going],
            )  # fmt: skip
            lengths[rows[going]] = step + 1
            ended = np.isin(chosen.numpy(), stop)
            stopped[rows[going & ended]] = True
            going &= ~ended & (limits[rows] > step + 1)
            self._report(ids, logprob, entropy, lengths, finished=not going.any())
            on_progress(len(requests) - int(going.sum()))
            if not going.any():
                break
            if going.mean() <= COMPACT_BELOW:
                keep = torch.from_numpy(np.flatnonzero(going)).to(device)
                rows, token, position, going = rows[going], token[keep], position[keep], going[going]
                samplers.keep(keep)
                self.cache.reorder_cache(keep)
                self.mask = self.mask[keep] if self.mask is not None else None
            hidden = self._forward(token, position)
            position = position + 1
        return [
            Generation(
                request.id,
                ids[i, :n].tolist(),
                logprob[i, :n].tolist(),
                entropy[i, :n].tolist(),
                "stop" if stopped[i] else "length",
            )
            for i, (request, n) in enumerate(zip(requests, lengths.tolist(), strict=True))
        ]

    def _prefill(self) -> tuple[Tensor, Tensor]:
        """Run each different prompt once; return last hidden states [R, H] and next positions [R] of all rows."""
        from transformers import DynamicCache

        given = [request.prompt_ids + request.prefix_ids for request in self.requests]
        unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(given))}
        width, device = max(len(prompt) for prompt in unique), self.policy.device
        ids, mask = torch.zeros(len(unique), width, dtype=torch.long), torch.zeros(len(unique), width, dtype=torch.long)
        for prompt, index in unique.items():
            ids[index, width - len(prompt) :] = torch.tensor(prompt)
            mask[index, width - len(prompt) :] = 1
        padded = not bool(mask.all())
        positions = (mask.cumsum(1) - 1).clamp_min(0).to(device)
        self.cache = DynamicCache(config=self.policy.lm.config)
        out = self.policy.hidden(
            ids.to(device), attention_mask=mask.to(device) if padded else None, position_ids=positions,
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        of_row = torch.tensor([unique[prompt] for prompt in given], device=device)
        self.cache.reorder_cache(of_row)
        self.mask = mask.to(device)[of_row] if padded else None
        return out[0][of_row, -1], (positions[of_row, -1] + 1)

    def _forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Append one token to every row and return the hidden states [R, H]."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        out = self.policy.hidden(
            token[:, None],
            attention_mask=self.mask,
            position_ids=position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return out[0][:, -1]

    def _report(self, ids: Tensor, logprob: Tensor, entropy: Tensor, lengths: np.ndarray, *, finished: bool) -> None:
        """Send the watched rows' new tokens, not too often."""
        if self.on_chunk is None or (not finished and time.monotonic() - self.reported < CHUNK_SECONDS):
            return
        chunks = []
        for i, request in enumerate(self.requests):
            start, end = self.sent.get(i, 0), int(lengths[i])
            if not request.watch or start == end:
                continue
            span = slice(start, end)
            first = len(request.prefix_ids) + start
            chunks.append(
                Chunk(request.id, first, ids[i, span].tolist(), logprob[i, span].tolist(), entropy[i, span].tolist())
            )
            self.sent[i] = end
        if chunks:
            self.on_chunk(chunks)
        self.reported = time.monotonic()


def _progress(report: OnProgress | None, before: int, total: int) -> Callable[[int], None]:
    """Return what a wave tells how many of its own requests are finished."""
    return (lambda done: report(before + done, total)) if report else (lambda done: None)


def _width(request: GenRequest) -> int:
    return len(request.prompt_ids) + len(request.prefix_ids)


def _cache_bytes_per_token(lm: Any) -> int:
    """Return the key-value cache of one token of one row."""
    config = lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * next(lm.parameters()).element_size()
