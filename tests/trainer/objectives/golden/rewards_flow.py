"""FlowRL's residual."""

from __future__ import annotations

from collections.abc import Iterator

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate


@case("flowrl")
def flowrl(recording: Recording) -> Iterator[Comparison]:
    given, inputs = recording.settings, dict(recording.inputs)
    partition = inputs.pop("log_z")
    inputs["log_partition"] = [row[0] if isinstance(row, list) else row for row in partition]
    part = {
        "type": "flowrl",
        "variant": "described" if "clipped" in recording.name else "released",
        "beta": given["beta_reward"],
        "clip": given["clip_ratio"],
    }
    found = evaluate({"preset": "flowrl", "parts": [part]}, inputs)
    yield same("gradient", found["grad_logprob"], recording.outputs["grad_log_prob"], recording.tolerance)
    yield same("loss", found["loss"], recording.outputs["loss"], recording.tolerance)
    expected = [row[0] if isinstance(row, list) else row for row in recording.outputs["grad_log_z"]]
    yield same("gradient of log Z", found["grad_extra"]["log_partition"], expected, recording.tolerance)
