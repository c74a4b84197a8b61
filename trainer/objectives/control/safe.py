"""SAFE: a KL penalty that sets in above a threshold, harder when entropy is low."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any, ClassVar, Literal

from trainer.objectives.base import Domain, Observation
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stages import Controller
from trainer.objectives.stock import BONUS, CLIP, GROUP, TOKENS
from trainer.part import setting

GATED = r"""P = \lambda\, (\overline{\mathrm{KL}} - \theta)_+^2 \max\!\Big(0.5, \frac{2}{H + 0.1}\Big), \quad
 \theta = \operatorname{clip}\big((0.3 + \mathrm{PID}) \cdot \text{phase},\; 0.1,\; 0.6\big)"""
ASYMMETRIC = r"P = 0.1\, (\mathrm{KL} - 0.3)_+^2 + 5\, (\Delta_{50} \mathrm{KL})_+^2"
PHASES = {"warmup": 1.5, "climbing": 1.2, "converged": 1.0, "plateau": 0.8}
WINDOW = 50  # steps by which the phase is judged
SMOOTH = 0.9  # share of the old divergence that stays
REWARD_SMOOTH = 0.95
WANTED_VELOCITY = 0.001  # reward gained in a step
KP, KI, KD = 0.3, 0.01, 0.05
LOWEST, HIGHEST = 0.1, 0.6  # nats, ends of the threshold
REFERENCE = paper(
    "SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control for RLHF", "2602.04651", 2026
)
VARIANT = "As the description means it, with a gradient, or as the released code does it: without one."


class SafePID(Controller):
    """KL threshold under PID control (SAFE).

    The penalty is strength times the squared excess of the smoothed divergence over a threshold, times a factor that
    grows as entropy falls. The threshold follows the speed at which reward rises (PID) and the phase of the run.
    Described: the coefficient of the KL penalty becomes the derivative of that penalty. Released: the penalty has no
    gradient, so the coefficient stays where it is and the knob `kl_excess` merely shows it.
    """

    title: ClassVar[str] = "KL threshold under PID (SAFE)"
    paper: ClassVar[str] = "2602.04651"
    formula: ClassVar[str] = GATED
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"kl_penalty"})
    moves: ClassVar[frozenset[str]] = frozenset({"kl_coefficient", "kl_threshold", "kl_excess"})
    type: Literal["safe_pid"] = "safe_pid"
    variant: Literal["described", "released"] = setting("described", help=VARIANT)
    base: float = setting(0.3, help="Threshold before it is adjusted.", unit="nats", gt=0, le=20)
    strength: float = setting(0.1, help="Weight of the squared excess.", ge=0, le=100)
    entropy_floor: float = setting(
        2.0, help="Entropy below which the penalty grows.", unit="nats", gt=0, le=20, advanced=True
    )
    threshold: float = setting(
        0.45,
        help="Threshold shown before the first step.",
        unit="nats",
        ge=0,
        le=20,
        advanced=True,
        knob="kl_threshold",
    )
    excess: float = setting(0.0, help="Penalty shown before the first step.", ge=0, advanced=True, knob="kl_excess")

    def initial_state(self) -> dict[str, Any]:
        return {"kl": 0.0, "kl_long": 0.0, "rewards": [], "average": None, "integral": 0.0, "error": 0.0}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not all(map(math.isfinite, (seen.kl, seen.entropy, seen.reward))):
            return state, {}
        state = dict(state)
        state["kl"] = SMOOTH * state["kl"] + (1 - SMOOTH) * seen.kl
        state["kl_long"] = 0.99 * state["kl_long"] + 0.01 * seen.kl
        state["rewards"] = [*state["rewards"], seen.reward][-2 * WINDOW :]
        adjustment = self._pid(state, seen.reward)
        threshold = min(max((self.base + adjustment) * PHASES[phase(state["rewards"])], LOWEST), HIGHEST)
        over = max(state["kl"] - threshold, 0.0)
        factor = max(0.5, self.entropy_floor / (seen.entropy + 0.1))
        moved = {"kl_threshold": threshold, "kl_excess": self.strength * over**2 * factor}
        if self.variant == "described":
            moved["kl_coefficient"] = 2 * self.strength * over * factor
        return state, moved

    @staticmethod
    def _pid(state: dict[str, Any], reward: float) -> float:
        """Return how far the threshold is moved, nats, from how fast the averaged reward rises; nothing at first."""
        before = state["average"]
        if before is None:
            state["average"] = reward
            return 0.0
        state["average"] = REWARD_SMOOTH * before + (1 - REWARD_SMOOTH) * reward
        error = state["average"] - before - WANTED_VELOCITY
        state["integral"] = min(max(state["integral"] + error, -1.0), 1.0)
        slope, state["error"] = error - state["error"], error
        return KP * error + KI * state["integral"] + KD * slope


def phase(rewards: list[float]) -> str:
    """Return the phase of a run by its last rewards: warmup, climbing, converged or plateau."""
    if len(rewards) < WINDOW:
        return "warmup"
    recent = rewards[-WINDOW:]
    earlier = rewards[-2 * WINDOW : -WINDOW] if len(rewards) >= 2 * WINDOW else recent
    if fmean(recent) > fmean(earlier) + 0.01:
        return "climbing"
    return "converged" if pstdev(recent) < 0.02 and fmean(recent) > 0.7 else "plateau"


class SafeAsymmetric(Controller):
    """Asymmetric KL penalty (SAFE).

    Divergence above a threshold is penalised by its square, and so is a rise over a window of steps; below the
    threshold the policy is free. Described: the coefficient of the KL penalty becomes the derivative of that penalty.
    Released: the penalty has no gradient.
    """

    title: ClassVar[str] = "Asymmetric KL (SAFE)"
    paper: ClassVar[str] = "2602.04651"
    formula: ClassVar[str] = ASYMMETRIC
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"kl_penalty"})
    incompatible: ClassVar[frozenset[str]] = frozenset({"safe_pid"})
    moves: ClassVar[frozenset[str]] = frozenset({"kl_coefficient", "kl_excess"})
    type: Literal["safe_asymmetric"] = "safe_asymmetric"
    variant: Literal["described", "released"] = setting("described", help=VARIANT)
    threshold: float = setting(
        0.3, help="Divergence that costs nothing.", unit="nats", ge=0, le=20, knob="kl_threshold"
    )
    strength: float = setting(0.1, help="Weight of the squared excess.", ge=0, le=100)
    momentum: float = setting(5.0, help="Weight of the squared rise in a step.", ge=0, le=1000)
    window: int = setting(50, help="Steps over which the rise is taken.", unit="steps", ge=2, le=10_000)
    excess: float = setting(0.0, help="Penalty shown before the first step.", ge=0, advanced=True, knob="kl_excess")

    def initial_state(self) -> dict[str, Any]:
        return {"kl": []}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if not math.isfinite(seen.kl):
            return state, {}
        past = [*state["kl"], seen.kl][-self.window :]
        over = max(seen.kl - knobs["kl_threshold"], 0.0)
        rise = max((seen.kl - past[0]) / self.window, 0.0) if len(past) == self.window else 0.0
        moved = {"kl_excess": self.strength * over**2 + self.momentum * rise**2}
        if self.variant == "described":
            moved["kl_coefficient"] = 2 * self.strength * over + 2 * self.momentum * rise / self.window
        return {"kl": past}, moved


# k2: its gradient at the policy's own samples is that of the divergence; that of k1 is zero on average
KL = {"type": "kl_penalty", "estimator": "k2", "coefficient": 0.0}
ASSUMED = (
    "The working form: the coefficient is the derivative of the described penalty, applied to the k2 estimate in the "
    "next step, and GRPO stands in for PPO with a critic."
)
RELEASED = "Released: the divergence enters as a number, so the penalty has no gradient and nothing is held."
PARTS = (SafePID, SafeAsymmetric)
PRESETS = (
    Preset(
        name="safe",
        title="SAFE",
        summary="A KL penalty that sets in above a threshold and grows as entropy falls: the lower entropy is, the "
        "harder the policy is held to the reference model. The threshold follows reward and phase.",
        when="Long runs that drift away from their start. It loads the reference model.",
        formula=GATED,
        reference=REFERENCE,
        confidence="code",
        assumed=ASSUMED,
        variants=RELEASED,
        parts=[GROUP, CLIP, KL, BONUS | {"coefficient": 0.01}, TOKENS, {"type": "safe_pid"}],
    ),
    Preset(
        name="safe-asymmetric",
        title="SAFE, asymmetric",
        summary="A KL penalty on divergence above 0.3 nats and on its rise; below it the policy is free to explore. "
        "Entropy is held only through the reference model's.",
        when="As a simpler form of SAFE.",
        formula=ASYMMETRIC,
        reference=REFERENCE,
        confidence="code",
        assumed=ASSUMED,
        variants=RELEASED,
        parts=[GROUP, CLIP, KL, BONUS | {"coefficient": 0.01}, TOKENS, {"type": "safe_asymmetric"}],
    ),
)
