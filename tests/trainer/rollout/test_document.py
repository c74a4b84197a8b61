"""docs/rollouts.md: its example is a strategy that does what the page says, its settings and presets exist."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tests.trainer.rollout.players import play
from tests.trainer.runs import ROOT
from trainer.config import RunConfig
from trainer.objectives import PRESETS
from trainer.objectives.base import Step
from trainer.objectives.stages import Rollout
from trainer.rollout.base import Done, GenRequest, Pick, Scene, Strategy
from trainer.rollout.groups import by_group, requests

PAGE = (ROOT / "docs/rollouts.md").read_text("utf-8")
NAMES: dict[str, Any] = {
    kind.__name__: kind for kind in (Done, GenRequest, Pick, Rollout, Scene, Sequence, Step, Strategy)
} | {"ClassVar": ClassVar, "Literal": Literal, "dataclass": dataclass, "by_group": by_group, "requests": requests}


def example() -> Rollout:
    names = dict(NAMES)
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/rollouts.md", "exec", dont_inherit=True), names)
    part: Rollout = names["AskAgain"]()
    return part


def test_the_example_asks_again_where_nobody_was_right_and_keeps_right_answers_first():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    hard = {group for group in range(6) if random.Random(f"{seed} {group}").random() < 0.5} | {1}

    def grade(request: GenRequest) -> bool:
        return request.sample == 3 if request.group not in hard else request.sample == 5

    step = Step(knobs={}, step=1, total_steps=1)
    picks, (player,), _ = play(lambda scene: example().strategy(scene, step), 6, 4, grade)
    assert [len(wave) for wave in player.waves] == [24, 4 * len(hard)]
    assert len({request.id for wave in player.waves for request in wave}) == 24 + 4 * len(hard)
    assert [(pick.group, pick.sample) for pick in picks] == [
        (group, sample) for group in range(6) for sample in range(4)
    ]
    assert all(pick.done.right == (pick.sample == 0) for pick in picks)


def test_settings_and_presets_on_the_page_exist():
    for path in set(re.findall(r"`(sampling(?:\.\w+)+)", PAGE)):
        value: Any = RunConfig()
        for name in path.split("."):
            value = getattr(value, name)
    named = {"dapo-dynamic", "t1", "grpo-tis", "grpo-mis"}
    assert all(f"`{name}`" in PAGE for name in named)
    assert named <= set(PRESETS)
