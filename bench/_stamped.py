"""The real trainer, which also notes when each token was drawn: `python _stamped.py RUN_DIR` (see live_latency.py).

Each line of stamps.jsonl in the run folder is one chunk of tokens told to viewers: step, completion, first token, the
second each of them was drawn at, and the second they were written at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from trainer.cli import main
from trainer.live_view import LiveView
from trainer.rollout import Chunk
from trainer.rollout.ledger import Ledger

record, listen = Ledger.record, LiveView.__call__
DRAWN: dict[tuple[int, int], float] = {}  # by completion and place in it


def note(ledger: Ledger, rows: np.ndarray, *given: Any) -> np.ndarray:
    """Note the second, then do what the ledger does."""
    now = time.time()
    for row in rows:
        DRAWN[ledger.requests[row].id, int(ledger.first[row] + ledger.lengths[row])] = now
    return record(ledger, rows, *given)


def tell(view: LiveView, chunks: Sequence[Chunk]) -> None:
    """Write the frames, then what is known of their tokens."""
    listen(view, chunks)
    now = time.time()
    with (Path(sys.argv[1]) / "stamps.jsonl").open("a") as file:
        for chunk in chunks:
            drawn = [DRAWN[chunk.id, chunk.first + place] for place in range(len(chunk.ids))]
            file.write(json.dumps([view.step, chunk.id, chunk.first, drawn, now]) + "\n")


if __name__ == "__main__":
    Ledger.record, LiveView.__call__ = note, tell  # type: ignore[method-assign]
    sys.exit(main())
