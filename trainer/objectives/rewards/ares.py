"""ARES: the reward counts uncertain turns of thought against what prompts of the same difficulty need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.lazy import torch
from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import completion_quantile, completion_sum, counts_of, group_mean, valid_of
from trainer.objectives.stages import Controller, RewardShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

LEVELS = ("easy", "medium", "hard")
EASY, MEDIUM, HARD = range(3)
MARGIN = (0.15, 0.25, 0.35)  # of the target, at least MIN_MARGIN triggers
MIN_MARGIN = 1.0
KAPPA = (2.0, 3.0, 4.0)
TEMPERATURE = (2.0, 2.5, 3.0)
CAP = (1.0, 1.0, 1.2)  # times the knob of the level
WRONG = (0.6, 0.8, 1.0)  # share of the cap that a wrong answer may earn
TRIGGERS = ("wait", "however", "but", "alternatively", "maybe", "perhaps", "hmm", "so", "therefore", "because", "if")
FORMULA = r"""r = \mathrm{acc} + e(n - n^\ast_{\text{level}}),
 \quad n = \#\{\text{triggers with } \bar H_{t+1:t+4} \ge \theta\}"""


def level_of(correct: Tensor, batch: TokenBatch) -> Tensor:
    """Return each completion's difficulty, [S]: 0 easy (two thirds of its group right), 1 medium (a third), 2 hard."""
    share = group_mean(correct, batch)
    return torch.where(share >= 2 / 3, EASY, torch.where(share >= 1 / 3, MEDIUM, HARD))


def level_means(values: Tensor, level: Tensor, batch: TokenBatch) -> dict[str, float]:
    """Return the mean over the valid completions of each level that occurs, by its name."""
    valid = valid_of(batch)
    chosen = {name: valid & (level == index) for index, name in enumerate(LEVELS)}
    return {name: float(values[where].mean()) for name, where in chosen.items() if bool(where.any())}


def huber(x: Tensor, k: Tensor) -> Tensor:
    """Return x^2 / 2k up to k and x - k / 2 beyond; 0 below 0."""
    return torch.where(x <= k, x.clamp(min=0).square() / (2 * k), x - k / 2)


def entropy_score(
    excess: Tensor, target: Tensor, level: Tensor, right: Tensor, alpha: Tensor, *, bonus: bool
) -> Tensor:
    """Return what the count of triggers adds to the reward, [S].

    `excess` is count - target, `alpha` the knob of the level. `bonus`: wrong answers get half their cap at the margin
    (the logistic at 0, as released), otherwise nothing there.
    """
    share, kappa, heat, scale, wrong = (
        alpha.new_tensor(table)[level] for table in (MARGIN, KAPPA, TEMPERATURE, CAP, WRONG)
    )
    margin, cap = (share * target.clamp(min=1)).clamp(min=MIN_MARGIN), alpha * scale
    over = torch.where(level == EASY, excess, excess.abs())
    too_long = -torch.minimum(cap, cap * huber(over - margin, kappa) / (margin + kappa))
    too_short = -torch.minimum(cap, 0.5 * cap * huber(-excess - margin, kappa) / (margin + kappa))
    explored = torch.where(excess >= -margin, torch.sigmoid((excess + margin) / heat) * cap, too_short)
    tried = torch.sigmoid((excess - margin).clamp(min=0) / heat)
    missed = (tried if bonus else 2 * tried - 1) * cap * wrong
    return torch.where(right, torch.where(level == HARD, explored, too_long), missed)


class ARESReward(RewardShaper):
    """Uncertain turns of thought by difficulty (ARES).

    Counts trigger words after which the mean entropy of the next tokens reaches a threshold. Against the mean count of
    prompts of the same difficulty (by how many of the group are right), right answers to easy prompts lose reward for
    more of them, to medium ones for more or fewer, to hard ones they gain by more; wrong answers gain by more.
    Described: a wrong answer earns nothing within the margin. Released: it gets half its cap there.
    """

    title: ClassVar[str] = "Turns of thought by difficulty (ARES)"
    paper: ClassVar[str] = "2510.08457"
    formula: ClassVar[str] = FORMULA
    domain: ClassVar[Domain] = "step"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"trigger", "old_entropy", "correct"})
    type: Literal["ares"] = "ares"
    variant: Literal["described", "released"] = setting(
        "described", help="As the paper describes it, or as the released code does it."
    )
    triggers: tuple[str, ...] = setting(TRIGGERS, help="Words that begin a turn of thought.", min_length=1)
    window: int = setting(4, help="Tokens after a trigger whose mean entropy counts.", unit="tokens", ge=1, le=64)
    threshold: float = setting(
        0.0,
        help="Entropy from which a turn counts; 0 takes this step's own figure until a controller has set it.",
        unit="nats",
        ge=0,
        le=20,
        knob="trigger_entropy",
    )
    target: float = setting(
        0.0, help="Turns a completion should take; 0 takes the mean of its difficulty.", ge=0, le=100_000, advanced=True
    )
    easy: float = setting(0.5, help="Cap of what turns count on easy prompts.", ge=0, le=2, knob="ares_easy")
    medium: float = setting(0.5, help="The same on medium ones.", ge=0, le=2, knob="ares_medium")
    hard: float = setting(0.5, help="The same on hard ones.", ge=0, le=2, knob="ares_hard")

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"triggers": self.triggers}

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        count = self._count(batch, step)
        correct = statistic(batch, "correct", self)
        level = level_of(correct, batch)
        means = level_means(count, level, batch)
        if self.variant == "released":
            means = {name: float(round(value)) for name, value in means.items()}
        step.metrics |= {f"objective/turns_{name}": value for name, value in level_means(count, level, batch).items()}
        target = count.new_tensor([self.target or means.get(name, 0.0) for name in LEVELS])[level]
        alpha = count.new_tensor([step.knobs[f"ares_{name}"] for name in LEVELS])[level]
        bonus = self.variant == "released"
        return batch.reward + entropy_score(count - target, target, level, correct > 0.5, alpha, bonus=bonus)

    def _count(self, batch: TokenBatch, step: Step) -> Tensor:
        """Return how many of each completion's triggers precede uncertain tokens, [S]."""
        after, whole = window_mean(statistic(batch, "old_entropy", self), batch, self.window)
        counts = counts_of(batch) & whole
        ends = completion_quantile(after, batch.replace(mask=counts.to(after.dtype)), 0.95)
        ends = ends[completion_sum(counts.to(after.dtype), batch) > 0]
        measured = float(ends.median()) if ends.numel() else 0.0
        step.metrics["objective/trigger_entropy"] = measured
        threshold = step.knobs["trigger_entropy"] or measured
        turn = counts & (statistic(batch, "trigger", self) > 0.5) & (after >= threshold)
        return completion_sum(turn.to(batch.reward.dtype), batch)


def window_mean(values: Tensor, batch: TokenBatch, window: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the `window` tokens after each token, [N], and where there are that many, [N] bool."""
    padded = torch.cat([values, values.new_zeros(window)])
    mean = padded.unfold(0, window, 1)[1:].mean(-1)
    owner = torch.cat([batch.sequence, batch.sequence.new_full((window,), -1)])
    return mean, owner[window:] == batch.sequence


class ARESControl(Controller):
    """Threshold and caps of ARES.

    The entropy threshold follows the step's figure by a slow moving average. Described: a level's cap grows on easy and
    medium prompts while their turns become more than they lately were, on hard prompts while they become fewer.
    Released: the turns are compared with their own rounded mean, so the caps hardly move.
    """

    title: ClassVar[str] = "Threshold and caps (ARES)"
    paper: ClassVar[str] = "2510.08457"
    formula: ClassVar[str] = (
        r"\tau \leftarrow d\,\tau + (1-d)\,\tau_{\mathrm{step}},\quad "
        r"c_\ell \leftarrow \mathrm{clip}_{[0,2]}\bigl(c_\ell \pm \eta\,(n_\ell - \bar n_\ell)\bigr),"
        r"\ - \text{ if hard}"
    )
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"ares"})
    moves: ClassVar[frozenset[str]] = frozenset({"trigger_entropy", "ares_easy", "ares_medium", "ares_hard"})
    type: Literal["ares_control"] = "ares_control"
    variant: Literal["described", "released"] = setting(
        "described", help="As the paper describes it, or as the released code does it."
    )
    decay: float = setting(0.99, help="Share of the old threshold that stays in a step.", ge=0, lt=1, advanced=True)
    rate: float = setting(0.05, help="Change of a cap per turn of difference.", ge=0, le=10, advanced=True)

    def initial_state(self) -> dict[str, Any]:
        return {"threshold": None, "usual": {}}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        state, moved = {**state, "usual": dict(state["usual"])}, {}
        measured = seen.metrics.get("objective/trigger_entropy", math.nan)
        if math.isfinite(measured):
            before = measured if state["threshold"] is None else state["threshold"]
            state["threshold"] = self.decay * before + (1 - self.decay) * measured
            moved["trigger_entropy"] = state["threshold"]
        for name in LEVELS:
            turns = seen.metrics.get(f"objective/turns_{name}", math.nan)
            if math.isfinite(turns):
                difference = turns - self._expected(state, name, turns)
                change = -difference if name == "hard" else difference
                moved[f"ares_{name}"] = min(max(knobs[f"ares_{name}"] + self.rate * change, 0.0), 2.0)
        return state, moved

    def _expected(self, state: dict[str, Any], name: str, turns: float) -> float:
        """Return what the turns of a level are compared with, and remember them."""
        if self.variant == "released":
            return float(round(turns))
        usual = state["usual"].get(name, turns)
        state["usual"][name] = self.decay * usual + (1 - self.decay) * turns
        return usual


PARTS = (ARESReward, ARESControl)
PRESETS = (
    Preset(
        name="ares",
        title="ARES",
        summary="Uncertain turns of thought are rewarded on hard prompts and paid for on easy ones, against what "
        "prompts of that difficulty usually take; a KL penalty of its own strength holds each difficulty. Entropy is "
        "lowered where prompts are easy and raised where they are hard.",
        when="Thinking models on prompts of mixed difficulty. The reward has to know right from wrong.",
        formula=FORMULA,
        reference=paper(
            "ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping", "2510.08457", 2025
        ),
        confidence="code",
        assumed="The trigger words are a short list of ours; described caps are compared with a slow average of their "
        "own past, and described wrong answers earn nothing within the margin.",
        variants="Released: a cap is compared with its own rounded mean and hardly moves; a wrong answer gets half its "
        "cap however few turns it took. Entropy is exact here and from the likeliest tokens there.",
        parts=[
            {"type": "ares"},
            GROUP,
            CLIP,
            {"type": "ares_kl"},
            TOKENS,
            {"type": "ares_control"},
            {"type": "ares_kl_control"},
        ],
    ),
)
