"""packed: an effect as one binary answer for the browser, laid out as a rollout bundle (docs/architecture.md)."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
from torch import Tensor

from trainer.whatif.effect import KINDS, Effect, own
from trainer.whatif.recording import Recording
from trainer.whatif.table import Row

HALF = 65504.0  # the largest float16


def packed(recording: Recording, effect: Effect, row: Row) -> bytes:
    """Return u32 header length, JSON header, then columns over all tokens.

    They are `weight f16, entropy_weight f16, kind u8, own_kind u8`.
    Context tokens have weight 0 and the first kind. Columns are aligned to 8 bytes; the header holds the row, the names
    of the kinds and where each column lies.
    """
    columns = {
        "weight": ("f16", _half(recording.spread(effect.weight))),
        "entropy_weight": ("f16", _half(recording.spread(effect.entropy_weight))),
        "kind": ("u8", recording.spread(effect.kind).numpy().tobytes()),
        "own_kind": ("u8", recording.spread(own(recording).kind).numpy().tobytes()),
    }
    tokens = recording.batch.tokens if recording.counts is None else len(recording.counts)
    specs, body, at = {}, [], 0
    for name, (dtype, data) in columns.items():
        specs[name] = {"dtype": dtype, "offset": at, "length": tokens}
        padded = data + bytes(-len(data) % 8)
        body.append(padded)
        at += len(padded)
    header = {"step": recording.step.step, "row": dataclasses.asdict(row), "kinds": KINDS, "columns": specs}
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, bytes(-(4 + len(text)) % 8), *body])


def _half(values: Tensor) -> bytes:
    return values.clamp(-HALF, HALF).numpy().astype(np.float16).tobytes()
