"""HICRA: tokens of planning phrases get more of the advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import TokenShaper
from trainer.objectives.stock import CLIP, GROUP_NO_STD, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

PHRASES = (
    "let me think", "wait let me", "on second thought", "let me check", "let me verify", "double check",
    "is this right", "that's not right", "that doesn't work", "try another approach", "start over", "go back and",
    "another way to", "what if we", "or we could", "the key is", "the key insight", "notice that",
)  # fmt: skip


def phrases_setting() -> Any:
    """Declare the phrases a planning token is recognised by; every part that reads `planning` has the same setting."""
    return setting(
        PHRASES,
        help="Phrases whose tokens count as planning, in any case.",
        max_length=1000,
    )


class Hicra(TokenShaper):
    """Planning credit (HICRA).

    Tokens inside a strategic phrase get alpha times the size of their advantage on top. As printed that is added to
    advantages of either sign, so planning in wrong answers is blamed less; as narrated it is blamed more.
    """

    title: ClassVar[str] = "Planning credit (HICRA)"
    paper: ClassVar[str] = "2509.03646"
    formula: ClassVar[str] = r"A_{it} \leftarrow A_{it} + \alpha\,|A_{it}|\ \text{ at planning tokens}"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"planning"})
    type: Literal["hicra"] = "hicra"
    variant: Literal["printed", "narrated"] = setting(
        "printed", help="Printed: the formula. Narrated: wrong planning is punished more, as the prose says."
    )
    alpha: float = setting(0.2, help="What planning tokens get on top, as a share of their advantage.", ge=0, le=1)
    phrases: tuple[str, ...] = phrases_setting()

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"phrases": self.phrases}

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        advantage, planning = batch.need("advantage"), statistic(batch, "planning", self) > 0
        more = self.alpha * (advantage.abs() if self.variant == "printed" else advantage)
        return torch.where(planning, advantage + more, advantage)


PARTS = (Hicra,)
PRESETS = (
    Preset(
        name="hicra",
        title="HICRA",
        summary="Tokens of strategic phrases (checking, going back, another way) get a fifth more advantage in right "
        "answers and a fifth less blame in wrong ones. Planning becomes likelier and stays varied, while routine "
        "tokens settle.",
        when="Responses in prose with recognisable strategic phrases; give phrases of your own for other domains.",
        formula=Hicra.formula,
        reference=paper("Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning", "2509.03646", 2025),
        confidence="secondary",
        variants="The prose promises a stronger penalty for planning in wrong answers, the formula weakens it; the "
        "formula is the default.",
        parts=[GROUP_NO_STD, {"type": "hicra"}, CLIP, TOKENS],
    ),
)
