"""Entropy minimisation without labels: as a reward (RENT, EM-RL), as a loss (EM-FT), and the one-shot entropy loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_mean, completion_sum, counts_of, step_mean
from trainer.objectives.rewards.replaced import others
from trainer.objectives.stages import Regulariser, RewardShaper
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

RENT = r"r_i = -\frac{1}{|o_i|} \sum_t H_{it}"
EM_FT = r"L = \frac{1}{n} \sum_{i,t} H\!\left(\operatorname{softmax}(z_{it} / \tau)\right)"
EM_RL = r"r_i = -\sum_t H_{it}"
ONE_SHOT = r"L = L_{\text{GRPO}} + 0.001\, \mathrm{KL} - 0.001\, \bar H"


class Confidence(RewardShaper):
    """Confidence reward (RENT, EM-RL).

    The task's reward is replaced by how sure the policy is of its own completion: minus its mean token entropy, minus
    the sum of it, or the log-prob of the completion. Completions without an answer can get a fixed reward instead.
    """

    title: ClassVar[str] = "Confidence reward"
    paper: ClassVar[str] = "2505.22660"
    formula: ClassVar[str] = RENT
    domain: ClassVar[Domain] = "completion"
    incompatible: ClassVar[frozenset[str]] = others("confidence_reward")
    type: Literal["confidence_reward"] = "confidence_reward"
    measure: Literal["mean_entropy", "sum_entropy", "logprob"] = setting(
        "mean_entropy", help="What stands for confidence: minus the mean or the sum of entropy, or the log-prob."
    )
    need_answer: bool = setting(True, help="Give completions without an answer a reward of their own.")
    no_answer: float = setting(-7.0, help="Reward without an answer.", ge=-1000, le=0, show_if={"need_answer": True})

    def reads(self) -> frozenset[Statistic]:
        measured = "old_logprob" if self.measure == "logprob" else "old_entropy"
        return frozenset({measured, "answer"} if self.need_answer else {measured})

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        reward = self._confidence(batch)
        step.metrics["objective/confidence"] = float(reward.mean()) if reward.numel() else 0.0
        if not self.need_answer:
            return reward
        return torch.where(statistic(batch, "answer", self) < 0, self.no_answer, reward)

    def _confidence(self, batch: TokenBatch) -> Tensor:
        if self.measure == "logprob":
            return completion_sum(batch.logprob if batch.old_logprob is None else batch.old_logprob, batch)
        entropy = statistic(batch, "old_entropy", self)
        return -(completion_mean if self.measure == "mean_entropy" else completion_sum)(entropy, batch)


class TemperedEntropyLoss(Regulariser):
    """Entropy as the loss (EM-FT).

    Adds coefficient times the token mean of the entropy at a second, lower temperature to the loss. With a positive
    coefficient the policy is made sure of whatever it samples.
    """

    title: ClassVar[str] = "Entropy loss"
    paper: ClassVar[str] = "2505.20282"
    formula: ClassVar[str] = EM_FT
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"tempered_entropy"})
    type: Literal["entropy_loss"] = "entropy_loss"
    temperature: float = setting(0.5, help="Temperature at which the entropy is taken.", gt=0, le=10)
    coefficient: float = setting(
        1.0, help="Weight in the loss; positive lowers entropy.", ge=-10, le=10, knob="entropy_loss_coefficient"
    )

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"second_temperature": self.temperature}

    def regularise(self, batch: TokenBatch, step: Step) -> Tensor:
        mean = step_mean(statistic(batch, "tempered_entropy", self), counts_of(batch))
        step.metrics["objective/tempered_entropy"] = float(mean.detach())
        return step.knobs["entropy_loss_coefficient"] * mean


PARTS = (Confidence, TemperedEntropyLoss)
PRESETS = (
    Preset(
        name="rent",
        title="RENT",
        summary="Unsupervised: the reward of a completion is minus its mean token entropy. The policy is rewarded for "
        "being sure, so entropy falls fast. A baseline of collapse.",
        when="To see how much of a gain is mere sharpening. The authors take 5 completions a prompt.",
        formula=RENT,
        reference=paper("Maximizing Confidence Alone Improves Reasoning", "2505.22660", 2025),
        confidence="code",
        parts=[
            {"type": "confidence_reward"},
            GROUP,
            CLIP,
            {"type": "kl_penalty", "coefficient": 1e-3},
            TOKENS,
        ],
    ),
    Preset(
        name="em-ft",
        title="EM-FT",
        summary="Unsupervised and without rewards: the token mean of the entropy at temperature 0.5 is the loss, on "
        "the policy's own samples. Entropy falls at once.",
        when="A baseline of collapse; the authors train for some ten steps with a learning rate of 2e-5, on samples "
        "drawn at temperature 0.5.",
        formula=EM_FT,
        reference=paper("One-shot Entropy Minimization", "2505.20282", 2025),
        confidence="code",
        parts=[GROUP, {"type": "no_policy"}, {"type": "entropy_loss"}, TOKENS],
    ),
    Preset(
        name="em-rl",
        title="EM-RL",
        summary="Unsupervised: the reward of a completion is minus the sum of its token entropies, or its log-prob. "
        "Short and sure completions win; entropy falls.",
        when='To compare with RENT; measure = "logprob" is the sequence form.',
        formula=EM_RL,
        reference=paper("The Unreasonable Effectiveness of Entropy Minimization in LLM Reasoning", "2505.15134", 2025),
        confidence="secondary",
        assumed="No training code was at hand: group advantage, clip and the lack of a KL penalty are GRPO's defaults.",
        parts=[
            {"type": "confidence_reward", "measure": "sum_entropy", "need_answer": False},
            GROUP,
            CLIP,
            TOKENS,
        ],
    ),
    Preset(
        name="one-shot-rlvr",
        title="One-shot RLVR",
        summary="GRPO with a small KL penalty and a small entropy bonus, as used to train on a single prompt. The "
        "bonus of 0.001 slows the fall of entropy and keeps one prompt useful for long.",
        when="Very few prompts. The authors take 8 completions a prompt at temperature 0.6.",
        formula=ONE_SHOT,
        reference=paper(
            "Reinforcement Learning for Reasoning in Large Language Models with One Training Example",
            "2504.20571",
            2025,
        ),
        confidence="code",
        parts=[
            GROUP,
            CLIP,
            {"type": "kl_penalty", "coefficient": 1e-3},
            BONUS | {"coefficient": 1e-3},
            TOKENS,
        ],
    ),
)
