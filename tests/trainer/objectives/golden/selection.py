"""80/20."""

from __future__ import annotations

from collections.abc import Iterator

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate


@case("beyond_80_20__trl_mask")
def high_entropy_mask(recording: Recording) -> Iterator[Comparison]:
    part = {"type": "top_entropy", "share": 1 - recording.settings["threshold_quantile"]}
    found = evaluate({"preset": "top-entropy-mask", "parts": [part]}, recording.inputs)
    yield same("mask", found["mask"], recording.outputs["entropy_mask"], 0)
    yield same("weight", found["weight"], recording.outputs["entropy_mask"], 0)  # advantage 1 where none is given
