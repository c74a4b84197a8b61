"""Four ways to sum token losses into one number, each with its denominator in the open."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from trainer.objectives.base import Step
from trainer.objectives.preset import Preset
from trainer.objectives.stages import Aggregation
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


def kept_tokens(batch: TokenBatch) -> Tensor:
    """Return how many tokens of each completion count, [S]."""
    assert batch.mask is not None
    return batch.per_sequence_sum(batch.mask)


def kept_sequences(batch: TokenBatch) -> Tensor:
    """Return how many completions have a token that counts, [], at least 1."""
    return (kept_tokens(batch) > 0).sum().clamp(min=1).to(batch.logprob.dtype)


class TokenMean(Aggregation):
    """Token mean (DAPO): every token of the step weighs the same."""

    title: ClassVar[str] = "Token mean"
    paper: ClassVar[str] = "2503.14476"
    formula: ClassVar[str] = r"L = \frac{1}{\sum_i |o_i|} \sum_{i,t} x_{i,t}"
    type: Literal["token_mean"] = "token_mean"

    def scale(self, batch: TokenBatch, step: Step) -> Tensor:
        assert batch.mask is not None
        return (1 / batch.mask.sum().clamp(min=1)).expand_as(batch.mask)


class SequenceMeanTokenMean(Aggregation):
    """Mean over completions of their token mean (GRPO as first published): short completions weigh more per token."""

    title: ClassVar[str] = "Mean of completion means"
    paper: ClassVar[str] = "2402.03300"
    formula: ClassVar[str] = r"L = \frac{1}{S} \sum_i \frac{1}{|o_i|} \sum_t x_{i,t}"
    type: Literal["seq_mean_token_mean"] = "seq_mean_token_mean"

    def scale(self, batch: TokenBatch, step: Step) -> Tensor:
        return 1 / (batch.per_token(kept_tokens(batch).clamp(min=1)) * kept_sequences(batch))


class SequenceMeanTokenSum(Aggregation):
    """Mean over completions of their token sum: long completions weigh more."""

    title: ClassVar[str] = "Mean of completion sums"
    paper: ClassVar[str] = ""
    formula: ClassVar[str] = r"L = \frac{1}{S} \sum_i \sum_t x_{i,t}"
    type: Literal["seq_mean_token_sum"] = "seq_mean_token_sum"

    def scale(self, batch: TokenBatch, step: Step) -> Tensor:
        return (1 / kept_sequences(batch)).expand_as(batch.logprob)


class ConstantNorm(Aggregation):
    """Sum over a constant (Dr. GRPO): no length bias, because the denominator knows no lengths.

    Sum of token losses / (length * completions); verl leaves out the completions, TRL keeps them.
    """

    title: ClassVar[str] = "Constant length"
    paper: ClassVar[str] = "2503.20783"
    formula: ClassVar[str] = r"L = \frac{1}{S\,L_{\max}} \sum_{i,t} x_{i,t}"
    type: Literal["const_norm"] = "const_norm"
    length: int = setting(
        0,
        help="Constant to divide by; 0 takes the run's max_completion_tokens, or the longest completion where unknown.",
        unit="tokens",
        ge=0,
        le=10_000_000,
    )
    divide_by_sequences: bool = setting(True, help="Also divide by the number of completions that count.")

    def scale(self, batch: TokenBatch, step: Step) -> Tensor:
        length = self.length or step.max_completion_tokens or max(1, int(batch.length.max()) if batch.sequences else 1)
        count = kept_sequences(batch) if self.divide_by_sequences else batch.logprob.new_ones(())
        return (1 / (length * count)).expand_as(batch.logprob)


PARTS = (
    TokenMean,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    ConstantNorm,
)
PRESETS: tuple[Preset, ...] = ()
