"""HAPO's temperature: every token's own, by where its log entropy lies among those of the step before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.base import Domain, Observation, Statistic, Step
from trainer.objectives.preset import Preset, paper
from trainer.objectives.reductions import counts_of, nearest_quantile
from trainer.objectives.stages import Controller, Decoding
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.part import setting
from trainer.rollout.modifiers import AdaptiveTemperature

if TYPE_CHECKING:
    from trainer.batch import TokenBatch
    from trainer.rollout.base import SamplerSpec

SMALLEST_ENTROPY = 1e-8  # nats; as in the authors' statistics of a batch
FIGURES = ("pivot", "spread", "highest", "lowest")  # of ln H over a step, kept for the next


class HAPOTemperature(Decoding, Controller):
    """Adaptive temperature (HAPO).

    Tokens whose entropy lies above the pivot quantile of the step before are drawn hotter, those below cooler, by at
    most a share tau of the temperature. The first step is drawn plainly. Log-probs and entropies that training reads
    stay those of the policy at its own temperature.
    """

    title: ClassVar[str] = "Adaptive temperature"
    paper: ClassVar[str] = "2509.16591"
    formula: ClassVar[str] = (
        r"T_t = T\bigl(1 + \tau \operatorname{clip}(s_\pm h_t, -1, 1)\bigr),\quad h_t = \frac{\ln H_t - Q_q}{\sigma},"
        r"\quad s_+ = \frac{1}{\max h},\ s_- = \frac{1}{|\min h|}"
    )
    domain: ClassVar[Domain] = "history"
    blind: ClassVar[bool] = True
    needs: ClassVar[frozenset[Statistic]] = frozenset({"old_entropy"})
    type: Literal["hapo_temperature"] = "hapo_temperature"
    strength: float = setting(
        0.05,
        help="tau: the largest relative change of the temperature; the first thing to lower where training collapses.",
        ge=0,
        le=0.95,
        knob="hapo_tau",
    )
    pivot: float = setting(0.8, help="Quantile of the step's log entropy at which the temperature stays.", ge=0, le=1)
    sign_mode: Literal["intended", "as_released"] = setting(
        "intended", help="Below the pivot cooler, as intended, or hotter, as the released code's sign makes it."
    )

    def sampler(self, given: SamplerSpec, sample: int, samples: int, step: Step) -> SamplerSpec:
        known = step.memory.get(self.type)
        if not known:
            return given
        above, below = known["highest"], -known["lowest"]
        up, down = (1 / side if side > 0 else 0.0 for side in (above, below))
        down = -down if self.sign_mode == "as_released" else down
        modifier = AdaptiveTemperature(known["pivot"], known["spread"], up, down, step.knobs["hapo_tau"])
        return replace(given, modifiers=(*given.modifiers, modifier))

    def measure(self, batch: TokenBatch, step: Step) -> None:
        counts = counts_of(batch)
        if batch.old_entropy is None or not bool(counts.any()):
            return
        logs = batch.old_entropy[counts].double().clamp(min=SMALLEST_ENTROPY).log()
        away = logs - nearest_quantile(logs, self.pivot)
        spread = float(away.square().mean().sqrt())
        scale = spread or 1.0  # all equal: every h is 0
        values = (float(logs[0] - away[0]), spread, float(away.max()) / scale, float(away.min()) / scale)
        step.metrics |= {f"decoding/{name}": value for name, value in zip(FIGURES, values, strict=True)}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        found = {name: seen.metrics[f"decoding/{name}"] for name in FIGURES if f"decoding/{name}" in seen.metrics}
        return found if len(found) == len(FIGURES) else state, {}


PARTS = (HAPOTemperature,)
PRESETS = (
    Preset(
        name="hapo-temperature",
        title="Adaptive temperature (HAPO)",
        summary="GRPO on completions whose uncertain tokens were drawn a little hotter and whose certain ones a little "
        "cooler: forks are explored, formats stay intact.",
        when="Entropy collapses while a plainly higher temperature spoils the text.",
        formula=HAPOTemperature.formula,
        reference=paper(
            "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature", "2509.16591", 2025
        ),
        confidence="code",
        variants="In the released code the scale below the pivot has the wrong sign, so all tokens are drawn hotter: "
        "sign_mode = as_released. There the statistics belong to whatever request came last; here to the step before. "
        "Log-probs are taken from the policy at its own temperature, as there, so the draws are slightly off-policy.",
        parts=[{"type": "hapo_temperature"}, GROUP, CLIP, TOKENS],
    ),
)
