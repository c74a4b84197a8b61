"""DCPO: right answers pull towards the policy at another temperature, without a single sample drawn from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.preset import Preset, Reference
from trainer.objectives.ratio import LOG_RATIO_LIMIT
from trainer.objectives.reductions import valid_of
from trainer.objectives.stages import Controller, TokenShaper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch


class TemperedAdvantage(TokenShaper):
    """Tempered advantage (DCPO).

    Mixes into the advantage, for right answers, the ratio of the sampled token's probability at a second temperature to
    that at the training temperature: hot pulls towards the flatter distribution, cold towards the sharper one. Sampling
    stays on-policy. The share grows with the distance to the target and with the rarity of right answers.
    """

    title: ClassVar[str] = "Tempered advantage"
    formula: ClassVar[str] = (
        r"A'_t = (1-\alpha) A_t + \alpha\, b_i\, \frac{\pi^{(T)}_{\text{old}}(y_t)}{\pi_{\text{old}}(y_t)},\quad "
        r"\frac{\alpha}{1-\alpha} = \frac{\min(|H^* - H|, 0.1)}{\operatorname{mean}_i b_i},\quad b_i = \mathbb 1[R_i > "
        "0.05]"
    )
    domain: ClassVar[Domain] = "history"
    may_flip: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_logprob", "tempered_logprob"})
    requires: ClassVar[frozenset[str]] = frozenset({"tempered_control"})
    type: Literal["tempered_advantage"] = "tempered_advantage"
    cap: float = setting(0.1, help="Largest distance to the target that counts.", unit="nats", ge=0, le=20)
    right: float = setting(0.05, help="Reward above which an answer counts as right.", ge=-1000, le=1000)
    temperature: float = setting(
        1.2,
        help="Second temperature before anything was measured; tempered_control moves it.",
        gt=0,
        le=10,
        advanced=True,
        knob="second_temperature",
    )
    gap: float = setting(
        0.0,
        help="Distance to the target before anything was measured; tempered_control moves it.",
        unit="nats",
        ge=0,
        le=20,
        advanced=True,
        knob="entropy_gap",
    )

    def options(self, knobs: dict[str, float]) -> dict[str, Any]:
        return {"second_temperature": knobs["second_temperature"]}

    def shape(self, batch: TokenBatch, step: Step) -> Tensor:
        valid = valid_of(batch)
        right = (valid & (batch.reward > self.right)).to(batch.logprob.dtype)
        share = float(right.sum() / valid.sum().clamp(min=1))
        odds = min(step.knobs["entropy_gap"], self.cap) / share if share > 0 else 0.0
        alpha = odds / (1 + odds)
        step.metrics["objective/tempered_share"] = alpha
        old = batch.logprob if batch.old_logprob is None else batch.old_logprob
        tempered = statistic(batch, "tempered_logprob", self)
        ratio = (tempered - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        return (1 - alpha) * batch.need("advantage") + alpha * batch.per_token(right) * ratio


class TemperedControl(Controller):
    """Second temperature (DCPO).

    Hot when the last entropy was at or below the target, else cold; it also passes on how far off the target it was.
    """

    title: ClassVar[str] = "Second temperature"
    formula: ClassVar[str] = r"T = T_{\text{hot}} \text{ if } H \le H^* \text{ else } T_{\text{cold}}"
    domain: ClassVar[Domain] = "history"
    moves: ClassVar[frozenset[str]] = frozenset({"second_temperature", "entropy_gap"})
    requires: ClassVar[frozenset[str]] = frozenset({"tempered_advantage"})
    type: Literal["tempered_control"] = "tempered_control"
    target: float = setting(0.5, help="Entropy to hold.", unit="nats", ge=0, le=20, knob="entropy_target")
    hot: float = setting(1.2, help="Second temperature at or below the target.", ge=1, le=10)
    cold: float = setting(0.8, help="Second temperature above it.", gt=0, le=1)
    estimator: Literal["sampled", "exact"] = setting(
        "sampled", help="Which entropy is compared: -mean log-prob as in the authors' code, or the exact one."
    )

    def reads(self) -> frozenset[Statistic]:
        return frozenset({"entropy"}) if self.estimator == "exact" else frozenset()

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        entropy = seen.entropy_sampled if self.estimator == "sampled" else seen.entropy
        if not math.isfinite(entropy):
            return state, {}
        target = knobs["entropy_target"]
        temperature = self.hot if entropy <= target else self.cold
        return state, {"second_temperature": temperature, "entropy_gap": abs(target - entropy)}

    def band(self, step: int, total_steps: int, knobs: dict[str, float]) -> tuple[float, float]:
        value = knobs.get("entropy_target", self.target)
        return value, value

    def course(self, x: float) -> tuple[float, float]:
        return self.target, self.target


PARTS = (TemperedAdvantage, TemperedControl)
PRESETS = (
    Preset(
        name="dcpo",
        title="DCPO",
        summary="Right answers are also credited with how much likelier a hotter policy would have made them while "
        "entropy is below its target, and a colder one while it is above. Entropy is steered from both sides, and "
        "sampling stays on-policy.",
        when="A target entropy without the extra rollouts of AEPO.",
        formula=TemperedAdvantage.formula,
        reference=Reference(title="Distribution-Centric Policy Optimization", url="https://github.com/597358816/DCPO"),
        confidence="code",
        variants="Where no answer is right the authors' code gives NaN; nothing is mixed in here. Before the first "
        "measurement nothing is mixed in either.",
        parts=[GROUP, {"type": "tempered_advantage"}, CLIP, TOKENS, {"type": "tempered_control"}],
    ),
)
