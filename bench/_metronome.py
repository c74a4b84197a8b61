"""A stand-in for the trainer that only keeps time: `python _metronome.py RUN_DIR` (see live_latency.py).

Writes an event every PERIOD and a live frame between two of them, as a run of many quick steps would. Live frames
carry the second they were written at in `sent`, which events have by themselves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.events import KIND_PROMPT, Control, Exit, Frame, RunFolder
from trainer.stream import Stream

# Seconds; no multiple of the supervisor's 0.1 s, so that every phase between the two is met.
PERIOD = 0.217
STEPS = 5000


def main(folder: RunFolder) -> None:
    attempt = int(os.environ["ISENTROPE_ATTEMPT"])
    stream = Stream(folder, attempt)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    about = {"total_steps": STEPS, "pid": os.getpid(), "device": "none", "parameters": 0, "vocabulary": 16}
    stream.emit("started", 0, resume_step=0, **about)
    for step in range(1, STEPS + 1):
        stream.begin_step()
        sent = json.dumps({"group": 0, "sample": 0, "prompt": "tick", "sent": time.time()}).encode()
        stream.frames(Frame(KIND_PROMPT, attempt, step, payload=sent))
        time.sleep(PERIOD / 2)
        values = {"reward/mean": step / STEPS, "entropy/mean": 1.0, "length/mean": 6.0, "gradient/norm": 1.0}
        stream.emit("metrics", step, values=values)
        time.sleep(PERIOD / 2)
        if folder.control.exists() and Control.model_validate_json(folder.control.read_bytes()).stop:
            break
    stream.emit("finished", step, status="stopped")
    folder.exit.write_text(Exit(status="stopped", attempt=attempt).model_dump_json())


if __name__ == "__main__":
    main(RunFolder(Path(sys.argv[1])))
