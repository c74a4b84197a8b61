"""Rewards that misbehave for real: what the completion says is what happens to the child that grades it."""

from __future__ import annotations

import math
import os
import time
from typing import Literal

from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task


class Obedient(Reward):
    """Does what the completion says."""

    type: Literal["obedient"] = "obedient"

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        match completion.split():
            case ["sleep"]:
                time.sleep(3600)
            case ["spin"]:
                return float(9**9**9**9)  # stays in C for ever
            case ["eat"]:
                return float(len(bytearray(8 << 30)))
            case ["exit"]:
                os._exit(0)
            case ["print"]:
                for pipe in (1, 2):
                    os.write(pipe, b"\xff" * (8 << 20))
                print("graded")
            case ["raise"]:
                raise ValueError("no such thing")
            case ["secret"]:
                return float("PLANTED_TOKEN" in os.environ)
            case ["pid"]:
                return float(os.getpid())
            case ["nan"]:
                return math.nan
            case ["none"]:
                return None
        return float(completion == row.answer)


class Unprepared(Obedient):
    """Lacks its library."""

    type: Literal["unprepared"] = "unprepared"  # type: ignore[assignment]

    def prepare(self) -> None:
        raise ImportError("pip install isentrope[tasks]")
