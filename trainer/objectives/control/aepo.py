"""AEPO's side batch: right answers drawn at another temperature replace rows of the main batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import AuxiliaryPlan, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import sequence_advantage
from trainer.objectives.stages import Sampling
from trainer.objectives.stock import GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from trainer.batch import TokenBatch


class AEPOSampling(Sampling):
    """Side batch at another temperature (AEPO).

    Part of the prompts are sampled again, hotter when entropy is below its target and colder when above. Of these, the
    completions with a clearly positive advantage get advantage 1 and take the place of the first rows of the main
    batch; half as many while cooling. Log-probs are those of the policy at the training temperature throughout.
    """

    title: ClassVar[str] = "Side batch (AEPO)"
    paper: ClassVar[str] = "2510.08141"
    formula: ClassVar[str] = (
        r"o' \sim \pi^{(T)} \text{ on a share of the prompts},\quad A' = 1 \text{ where } A' > \theta"
    )
    requires: ClassVar[frozenset[str]] = frozenset({"auxiliary_temperature"})
    type: Literal["aepo_sampling"] = "aepo_sampling"
    prompt_share: float = setting(0.25, help="Share of the prompts that are sampled again.", gt=0, le=1)
    threshold: float = setting(0.05, help="Smallest advantage a side completion needs, exclusive.", ge=0, le=10)
    replace_rows: int = setting(
        60, help="Most rows of the main batch replaced; the paper has 60 of 2560.", unit="samples", ge=1, le=100_000
    )

    def plan(self, step: Step) -> AuxiliaryPlan:
        return AuxiliaryPlan(self.prompt_share, step.knobs["auxiliary_temperature"])

    def compose(self, batch: TokenBatch, step: Step) -> TokenBatch:
        assert batch.auxiliary is not None
        assert batch.advantage is not None
        assert batch.mask is not None
        counts = batch.per_sequence_sum(batch.mask) > 0
        good = batch.auxiliary & counts & (sequence_advantage(batch) > self.threshold)
        main = ~batch.auxiliary
        limit = self.replace_rows if step.knobs["auxiliary_temperature"] >= 1 else self.replace_rows // 2
        taken = good & (good.cumsum(0) <= min(limit, int(main.sum())))
        number = int(taken.sum())
        stays = main & (main.cumsum(0) > number)
        step.metrics["objective/replaced_rows"] = float(number)
        advantage = torch.where(batch.per_token(taken), torch.ones_like(batch.advantage), batch.advantage)
        return batch.replace(advantage=advantage, mask=batch.mask * batch.per_token(taken | stays))


PARTS = (AEPOSampling,)
PRESETS = (
    Preset(
        name="aepo",
        title="AEPO",
        summary="A part of the prompts is sampled again, hotter when entropy is below its target and colder when "
        "above; right answers among them replace rows of the batch with advantage 1.",
        when="Moving entropy to a chosen level through what is imitated, without an entropy term in the loss.",
        formula=AEPOSampling.formula,
        reference=paper("Arbitrary Entropy Policy Optimization (later versions: SCOPE-RL)", "2510.08141", 2025),
        confidence="code",
        parts=[
            {"type": "aepo_sampling"},
            GROUP,
            {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.3},
            TOKENS,
            {"type": "auxiliary_temperature"},
        ],
    ),
)
