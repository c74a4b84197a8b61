"""The form that a prompt's template asks for, where prompts are worded in several ways (2602.03190)."""

from __future__ import annotations

from typing import ClassVar, Literal

from trainer.part import setting
from trainer.rewards.base import Reward
from trainer.tasks.base import Row, Task
from trainer.template import keeps


class TemplateFormReward(Reward):
    """Template's form: 1 where the answer has the parts that its prompt's template asks for, in order.

    For runs with prompt augmentation; a template that asks for nothing, and a held-out prompt, always gets 1.
    """

    title: ClassVar[str] = "Template's form"
    paper: ClassVar[str] = "2602.03190"
    inline: ClassVar[bool] = True
    type: Literal["template_form"] = "template_form"
    only_if_right: bool = setting(True, help="Pay for form only where the other parts find the answer right.")

    @property
    def gated(self) -> bool:
        return self.only_if_right

    def score(self, task: Task, row: Row, completion: str) -> float | None:
        form = row.extra.get("form")
        return 1.0 if form is None else float(keeps(form, completion))
