"""Forward: how completions go through a model, chosen once a model is loaded and stated on the run's page.

Packed rows (trainer/packed.py) where the model's attention can be exchanged, else rectangles (trainer/rectangles.py).
A way is used only after it gave the plain way's hidden states and gradients on a small sample, on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.attention import PLANS, install
from trainer.packed import pack_rows, packed_states
from trainer.rectangles import Trajectory, pack, shared_states, whole_states

ATTENTION = {
    "varlen": "flash attention over ragged sequences",
    "flex": "block-sparse attention",
    "tiles": "attention in tiles of like lengths",
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}  # largest norm of a difference relative to the norm
NOISE = 10.0  # or this many times what rounding makes of the plain way: gradients of deep models scatter more


@dataclass(frozen=True)
class Forward:
    """One way of running completions."""

    name: str
    why: str  # one sentence
    pack: Callable[[Sequence[Trajectory], Sequence[int], int], list[list[int]]]  # (all, chosen, tokens) to index lists
    states: Callable[[Any, Sequence[Trajectory], torch.device], Tensor]  # (decoder, completions, device) to [n, H]


def choose(lm: Any, device: torch.device, *, dtype: str, recomputes: bool = False, gradients: bool = True) -> Forward:
    """Return the best way that works for a causal language model; may exchange its attention.

    `dtype` is what the model computes in, `recomputes` says that gradient checkpointing is on, `gradients` that the
    weights can be differentiated by now.
    """
    if unusual := _unusual(lm.config):
        return Forward(
            "rectangles", f"every row carries its prompt: {unusual}", partial(pack, shared=False), whole_states
        )
    trial = _Trial(lm, device, TOLERANCE[dtype], gradients=gradients)
    reasons: list[str] = []
    for kind in _candidates(dtype, device):
        states = partial(packed_states, plan=PLANS[kind])
        if (reason := trial.exchanged(states)) is None:
            why = f"no padding, the prompt of a group runs once; {ATTENTION[kind]} gives what the plain way gives"
            return Forward(f"packed rows, {kind}", "; ".join([why, *reasons]), pack_rows, states)
        reasons.append(f"{kind}: {reason}")
    if recomputes:  # recomputation in the backward pass would run on a cache that has moved on
        reasons.append("gradient checkpointing rules out a prompt's cache")
    elif (reason := trial.differs(shared_states)) is None:
        return Forward("rectangles, prompts shared", "; ".join(reasons), partial(pack, shared=True), shared_states)
    else:
        reasons.append(f"a prompt's cache: {reason}")
    return Forward("rectangles", "; ".join(reasons), partial(pack, shared=False), whole_states)


class _Trial:
    """Ways compared with the plain one on a sample."""

    def __init__(self, lm: Any, device: torch.device, tolerance: float, *, gradients: bool) -> None:
        self.lm, self.device, self.tolerance = lm, device, tolerance
        self.rows = _sample(lm.config, device)
        learning = [p for p in lm.base_model.parameters() if p.requires_grad and gradients]
        self.learning = sorted(learning, key=lambda p: p.numel())[:2]  # norms and biases: quickly compared
        self.plain = self._outcome(whole_states)
        self.noise = self._distances(self._outcome(_alone))  # of rounding: the same rows, other shapes

    def _outcome(self, states: Any) -> list[Tensor]:
        """Return the states of the sample and the gradients of two small parameters by a weighted sum of them.

        Linear: a bent function of states as large as 50 would make a difference of their rounding.
        """
        with torch.set_grad_enabled(bool(self.learning)):
            found = states(self.lm.base_model, self.rows, self.device)
            gradients = (
                torch.autograd.grad(
                    (found.float() * _weights(found)).mean(), self.learning, allow_unused=True, materialize_grads=True
                )
                if self.learning
                else ()
            )
        return [tensor.detach().float() for tensor in (found, *gradients)]

    def differs(self, states: Any) -> str | None:
        """Return why a way is not the plain one, or None where it is."""
        try:
            found = self._outcome(states)
        except Exception as error:  # attention of another kind, a compiler that is missing: anything may be raised
            return f"does not run ({type(error).__name__})"
        if any(ours.shape != theirs.shape for ours, theirs in zip(found, self.plain, strict=True)):
            return "gives other shapes"
        limits = [max(self.tolerance, NOISE * noise) for noise in self.noise]
        fits = all(far <= limit for far, limit in zip(self._distances(found), limits, strict=True))
        return None if fits else "gives other numbers"

    def _distances(self, found: list[Tensor]) -> list[float]:
        """Return the norm of each difference from the plain way, relative to the norm; NaN fits no limit."""
        tiny = torch.finfo(torch.float32).tiny
        pairs = zip(found, self.plain, strict=True)
        return [float((ours - theirs).norm() / theirs.norm().clamp_min(tiny)) for ours, theirs in pairs]

    def exchanged(self, states: Any) -> str | None:
        """Exchange the model's attention; return None, or put it back and return why."""
        before = self.lm.config._attn_implementation
        try:
            install(self.lm)
        except (ValueError, AttributeError) as error:
            return str(error)
        if reason := self.differs(states):
            self.lm.set_attn_implementation(before)
        return reason


def _alone(model: Any, rows: Sequence[Trajectory], device: torch.device) -> Tensor:
    """Return the same states as `whole_states`, each row run by itself."""
    return torch.cat([whole_states(model, [row], device) for row in rows])


def _weights(states: Tensor) -> Tensor:
    """Return fixed numbers of either sign in the shape of the states, float32."""
    return torch.arange(states.numel(), dtype=torch.float32, device=states.device).sin().view_as(states)


def _unusual(config: Any) -> str | None:
    """Return what a config says against sharing prompts in one row, or None: layers that forget or mix neighbours."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"the model has {', '.join(sorted(kinds)).replace('_', ' ')} layers"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model has a sliding window"
    return None


def _candidates(dtype: str, device: torch.device) -> list[str]:
    """Return the kinds of attention worth trying, in order; flash attention computes in 16 bits.

    The order on a GPU is an expectation that no measurement backs yet.
    """
    if device.type != "cuda":
        return ["tiles"]
    return ["varlen", "flex", "tiles"] if dtype == "bfloat16" else ["flex", "tiles"]


def _sample(config: Any, device: torch.device) -> list[Trajectory]:
    """Return completions that share prompts, repeat each other or have one token; on a GPU also some of many blocks."""
    vocabulary, context = config.get_text_config().vocab_size, getattr(config, "max_position_embeddings", None) or 1024

    def ids(start: int, count: int) -> tuple[int, ...]:
        return tuple((start + 7 * k) % vocabulary for k in range(count))

    rows = [Trajectory(ids(1, 3), ids(start, count)) for start, count in ((2, 5), (4, 1), (6, 3), (6, 3))]
    rows.append(Trajectory(ids(3, 1), ids(5, 2)))
    if device.type == "cuda" and context >= 512:
        rows += [Trajectory(ids(8, 300), ids(9 + count, count)) for count in (200, 1, 130, 129)]
    return rows
