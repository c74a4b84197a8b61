"""The sampler tap: vLLM's model computes logits, the project's own sampler draws from them.

vLLM has no exact entropies, gives log-probs either at temperature 1 or truncated, and draws seeded requests one row at
a time. All of that follows from the raw logits, which pass through one method of its V1 model runner,
`sampler.forward`. The tap takes its place: it says which request each row belongs to, hands out the logits and returns
the tokens. Sampling runs outside CUDA graphs, so nothing has to be captured again.

The V2 runner samples by other means (its sampler has no `forward` that sees raw logits alone), so start.py pins V1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Draw = Callable[[Sequence[str], np.ndarray, Tensor], Tensor]


class Tap:
    """Stands in for the sampler of a model runner while `draw` is set."""

    def __init__(self, runner: Any) -> None:
        """`draw(names, live, logits)` gets the engine's name of each row's request, which rows are `live` [R] and the
        raw logits [R, V]; it returns a token id for each row, [R]. A row is not live while its prompt is still being
        read: its token is thrown away.
        """
        self.draw: Draw | None = None
        self._runner, self._plain = runner, runner.sampler.forward
        runner.sampler.forward = self._forward

    def close(self) -> None:
        """Give vLLM its own sampler back and let go of the runner, whose tensors lie in vLLM's memory."""
        self._runner.sampler.forward = self._plain
        self._runner = self._plain = None

    def _forward(self, logits: Tensor, sampling_metadata: Any, *args: Any, **options: Any) -> Any:
        if self.draw is None:
            return self._plain(logits, sampling_metadata, *args, **options)
        from vllm.v1.outputs import SamplerOutput

        names = self._runner.input_batch.req_ids
        live = ~self._runner.discard_request_mask.np[: len(names)].astype(bool)
        token = self.draw(names, live, logits)
        return SamplerOutput(sampled_token_ids=token.int()[:, None], logprobs_tensors=None)
