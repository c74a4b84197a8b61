"""What if another objective had been applied to a recorded step? Reads a rollout file, computes no model.

    recording = read(folder.rollout_file(step))
    effect(recording, ObjectiveConfig(preset="clip-cov"))      what it does to every token
    row(recording, ObjectiveConfig(preset="clip-cov"))         the same in a few figures

The code is that of the trainer, `Objective.prepare` and `apply`, on the numbers the trainer recorded: minibatch by
minibatch, on the policy as each of them found it.
"""

from __future__ import annotations

from trainer.whatif.effect import KINDS, Effect, effect, own
from trainer.whatif.packing import packed
from trainer.whatif.recording import Recording, read
from trainer.whatif.table import Row, row, table

__all__ = ["KINDS", "Effect", "Recording", "Row", "effect", "own", "packed", "read", "row", "table"]
