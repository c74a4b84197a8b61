"""Run by torchrun with two processes: a trainer whose second process fails where it generates for the third step."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from trainer.attempt import run_attempt
from trainer.errors import ResourceError
from trainer.rollout.hf import HfEngine

honest = HfEngine.run


def run(engine: HfEngine, *args: Any) -> Any:
    if os.environ["RANK"] == "1" and engine.version == 2:
        raise ResourceError("the engine fell over; resume the run from its checkpoint")
    return honest(engine, *args)


if __name__ == "__main__":
    HfEngine.run = run  # type: ignore[method-assign]
    sys.exit(run_attempt(Path(sys.argv[1])))
