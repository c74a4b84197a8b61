"""linear_logprob_entropy and linear_token_loss: check the operands once, choose the room, restore the shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.kernels.checks import check_operands, check_options, check_weight_grad, inverse_of, safe_target
from trainer.kernels.chunked import chunked
from trainer.kernels.fused import Loss, token_loss
from trainer.kernels.reference import reference, reference_loss
from trainer.kernels.rooms import RoomName, choose_room, load_room
from trainer.kernels.stats import TokenStats
from trainer.kernels.task import Task
from trainer.kernels.wants import Shape, Wants


def linear_logprob_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    moments: bool = False,
    second_temperature: float | None = None,
    min_p: float | None = None,
    top_p: float | None = None,
    nucleus_crossing: bool = False,
    room: RoomName = "auto",
    keep_bytes: int = 0,
    chunk_bytes: int | None = None,
    invariant: bool = False,
) -> TokenStats:
    """Return log-prob of `target` and exact entropy under softmax(z / temperature), without keeping [N, V] logits.

    z = cap(logit_scale (hidden @ weight.T + bias)), cap(x) = softcap tanh(x / softcap). hidden [..., H], weight
    [V, H], bias [V], one floating dtype; target [...] integers in [0, V) or `ignore_index`; temperature a number or
    [...], above 0. Statistics have the shape of target, in nats, float32 (float64 for float64 operands).

    Gradients reach hidden, weight and bias, once. Rows without gradient cost nothing there. `keep_bytes` of logits are
    kept for the backward pass instead of computed again; `chunk_bytes` of logits exist at once otherwise (None: by the
    device's memory). `invariant`: a row's statistics are bitwise the same whatever stands in the other rows and however
    many there are. Raises ValueError naming the argument and the fix; on CUDA, where looking at values would wait for
    the device, a target or temperature out of range makes its row NaN instead.
    """
    call = _Call.of(
        hidden, weight, target, temperature, bias, ignore_index,
        Task(
            load_room(choose_room(hidden.device, room)[0]),
            Shape(logit_scale, softcap),
            Wants(moments, second_temperature, min_p, top_p, nucleus_crossing),
            chunk_bytes,
            keep_bytes,
            invariant=invariant,
        ),
    )  # fmt: skip
    compute = reference if call.task.room.name == "reference" else chunked
    return call.restore(compute(*call.operands, call.task))


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    temperature: float | Tensor = 1.0,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    moments: bool = False,
    second_temperature: float | None = None,
    min_p: float | None = None,
    top_p: float | None = None,
    nucleus_crossing: bool = False,
    room: RoomName = "auto",
    chunk_bytes: int | None = None,
    weight_grad: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """Return the sum of per-token losses, differentiable once by hidden, weight and bias, and the detached statistics.

    `loss(stats, rows)` gets the statistics of a few rows, of which the differentiable ones carry gradients, and the
    numbers of these rows [n] int64 in the flattened target; it returns their losses [n]. It must need nothing of other
    rows, and is called once for each chunk: three matrix products in all, instead of four, in constant memory. The
    other arguments and errors are those of linear_logprob_entropy. Without gradients it is called once, for all rows.

    `weight_grad` [V, H], in the dtype of the statistics, spares a copy of the weight's gradient: it is added there at
    once, as for a total that nothing scales, and the backward pass gives the weight none.
    """
    call = _Call.of(
        hidden, weight, target, temperature, bias, ignore_index,
        Task(
            load_room(choose_room(hidden.device, room)[0]),
            Shape(logit_scale, softcap),
            Wants(moments, second_temperature, min_p, top_p, nucleus_crossing),
            chunk_bytes,
        ),
    )  # fmt: skip
    check_weight_grad(weight_grad, weight, call.operands[3].dtype)
    live = call.live

    def renumbered(stats: TokenStats, rows: Tensor) -> Tensor:
        return loss(stats, rows if live is None else live[rows])

    compute = reference_loss if call.task.room.name == "reference" else token_loss
    total, stats = compute(*call.operands, renumbered, call.task, weight_grad)
    return total, call.restore(stats)


@dataclass(frozen=True)
class _Call:
    """Checked operands of the rows that count, and how to give back what was given."""

    operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
    task: Task
    shape: torch.Size  # of target
    live: Tensor | None  # [n] the rows that are not ignored; None: all

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float | Tensor,
        bias: Tensor | None,
        ignore_index: int | None,
        task: Task,
    ) -> _Call:
        check_operands(hidden, weight, target, bias)
        check_options(task)
        inverse = inverse_of(temperature, target, torch.promote_types(hidden.dtype, torch.float32))
        shape, states, target = target.shape, hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1).long()
        live = None
        if ignore_index is not None:
            live = torch.nonzero(target != ignore_index).squeeze(1)
            states, target, inverse = states[live], target[live], inverse[live]
        target, inverse = safe_target(target, inverse, len(weight))
        if 1 not in weight.stride():
            weight = weight.contiguous()
        return cls((states, weight, target, inverse, bias), task.on(states, weight), shape, live)

    def restore(self, stats: TokenStats) -> TokenStats:
        """Return the statistics in the shape of the target, zeros where it was ignored."""
        if self.live is None:
            return stats.map(lambda value: value.reshape(self.shape))
        live = self.live
        return stats.map(lambda value: value.new_zeros(self.shape.numel()).index_copy(0, live, value).view(self.shape))
