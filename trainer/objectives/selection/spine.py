"""SPINE: test-time training on the forks of each answer alone, with their entropy held in a band."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_quantile, completion_rank, counts_of, step_mean
from trainer.objectives.stages import Regulariser
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class EntropyBand(Regulariser):
    """Entropy band of the forks (SPINE).

    Within each completion, among the tokens that count, entropy above the upper quantile and below the lower one costs
    its distance, so forks neither blow up nor close. Quantiles are constants. With a mask that drops all other tokens,
    the tokens that count are the forks.
    """

    title: ClassVar[str] = "Entropy band"
    paper: ClassVar[str] = "2511.17938"
    formula: ClassVar[str] = (
        r"R = \frac{1}{|F|}\sum_{t \in F} \lambda_{\text{hi}} [H_t - q_{50}(H)]_+ + \lambda_{\text{lo}} [q_{10}(H) - "
        "H_t]_+"
    )
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"entropy", "entropy_grad"})
    type: Literal["entropy_band"] = "entropy_band"
    low: float = setting(0.1, help="Quantile below which entropy is pulled up.", ge=0, le=1)
    high: float = setting(0.5, help="Quantile above which entropy is pulled down.", ge=0, le=1)
    price_low: float = setting(5e-3, help="Price of a nat below the band.", ge=0, le=10, knob="band_price_low")
    price_high: float = setting(5e-3, help="Price of a nat above the band.", ge=0, le=10, knob="band_price_high")

    @model_validator(mode="after")
    def _ordered(self) -> EntropyBand:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, {self.high}; lower it")
        return self

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        entropy, counts = statistic(batch, "entropy", self), counts_of(batch)
        level = entropy.detach()
        rank = completion_rank(level, batch)
        floor, ceiling = (
            batch.per_token(completion_quantile(level, batch, q, rank=rank)) for q in (self.low, self.high)
        )
        above, below = (entropy - ceiling).relu(), (floor - entropy).relu()  # no slope on the edge itself
        return step_mean(step.knobs["band_price_high"] * above + step.knobs["band_price_low"] * below, counts)


PARTS = (EntropyBand,)
PRESETS = (
    Preset(
        name="spine",
        title="SPINE",
        summary="Training without labels: the answer most of the group gives counts as right. Only the fifth of each "
        "completion's tokens with the highest entropy is trained on, near the initial policy, and their entropy is "
        "pulled towards a band of its own quantiles, so that the vote does not close the forks.",
        when="Test-time training on unlabelled prompts, eight completions each.",
        formula=EntropyBand.formula,
        reference=paper(
            "SPINE: Token-selective test-time reinforcement learning with an entropy band", "2511.17938", 2025
        ),
        confidence="secondary",
        assumed="No code was seen. Prices of the band (0.005) and of the KL divergence (0.001) are not published; the "
        "quantiles are taken over the forks, since over all tokens every fork would lie above the band; all means "
        "are over the forks of the step.",
        parts=[
            {"type": "majority_vote"},
            GROUP,
            {"type": "top_entropy", "scope": "completion", "removal": "drop"},
            CLIP,
            {"type": "kl_penalty", "coefficient": 1e-3},
            {"type": "entropy_band"},
            TOKENS,
        ],
    ),
)
