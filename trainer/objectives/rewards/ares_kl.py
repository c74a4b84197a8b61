"""ARES's KL penalty: each difficulty has a strength of its own, moved towards a target divergence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trainer.objectives.base import Domain, Observation, Statistic, Step, statistic
from trainer.objectives.common.kl_penalty import Estimator, kl_estimate
from trainer.objectives.preset import Preset
from trainer.objectives.reductions import completion_mean, completion_tokens, valid_of
from trainer.objectives.rewards.ares import LEVELS, level_means, level_of
from trainer.objectives.stages import Controller, TokenPenalty
from trainer.part import setting

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.batch import TokenBatch

LOWEST, HIGHEST = 1e-4, 1e2


class ARESKL(TokenPenalty):
    """KL penalty by difficulty (ARES).

    Adds coefficient times the strength of the prompt's difficulty times an estimate of the divergence from the
    reference model.
    """

    title: ClassVar[str] = "KL by difficulty (ARES)"
    paper: ClassVar[str] = "2510.08457"
    formula: ClassVar[str] = r"L_t \mathrel{+}= 0.01\, \beta_{\text{level}}\, \mathrm{KL}_t"
    domain: ClassVar[Domain] = "group"
    needs: ClassVar[frozenset[Statistic]] = frozenset({"logprob", "ref_logprob", "correct"})
    incompatible: ClassVar[frozenset[str]] = frozenset({"kl_penalty"})
    type: Literal["ares_kl"] = "ares_kl"
    estimator: Estimator = setting("k3", help="Estimate of the divergence from sampled tokens.")
    coefficient: float = setting(0.01, help="Price of a nat at strength 1.", ge=0, le=100, knob="kl_coefficient")
    easy: float = setting(1.0, help="Strength on easy prompts.", ge=LOWEST, le=HIGHEST, knob="kl_easy")
    medium: float = setting(1.0, help="Strength on medium prompts.", ge=LOWEST, le=HIGHEST, knob="kl_medium")
    hard: float = setting(1.0, help="Strength on hard prompts.", ge=LOWEST, le=HIGHEST, knob="kl_hard")

    def penalty(self, batch: TokenBatch, step: Step) -> Tensor:
        values = kl_estimate(batch.logprob, statistic(batch, "ref_logprob", self), self.estimator)
        level = level_of(statistic(batch, "correct", self), batch)
        counted = batch.replace(valid=valid_of(batch) & (completion_tokens(batch) > 0))
        means = level_means(completion_mean(values.detach(), batch), level, counted)
        step.metrics |= {f"objective/kl_{name}": value for name, value in means.items()}
        strength = values.new_tensor([step.knobs[f"kl_{name}"] for name in LEVELS])[level]
        return step.knobs["kl_coefficient"] * batch.per_token(strength) * values


class ARESKLControl(Controller):
    """Strength of the KL penalty by difficulty (ARES).

    A slow average of each difficulty's divergence is compared with its target; every so many steps the log of the
    strength moves by a small step along the averaged relative error, unless that is small.
    """

    title: ClassVar[str] = "KL strength by difficulty (ARES)"
    paper: ClassVar[str] = "2510.08457"
    formula: ClassVar[str] = (
        r"\log \beta_\ell \leftarrow \log \beta_\ell + \eta\,\mathrm{clip}_{[-L, L]}"
        r"\Bigl(\overline{\overline{\mathrm{KL}}_\ell / \mathrm{KL}^* - 1}\Bigr)"
    )
    domain: ClassVar[Domain] = "history"
    requires: ClassVar[frozenset[str]] = frozenset({"ares_kl"})
    moves: ClassVar[frozenset[str]] = frozenset({"kl_easy", "kl_medium", "kl_hard"})
    type: Literal["ares_kl_control"] = "ares_kl_control"
    target: float = setting(0.01, help="Divergence aimed at.", unit="nats", gt=0, le=20)
    decay: float = setting(0.97, help="Share of the old averages that stays.", ge=0, lt=1, advanced=True)
    dead_zone: float = setting(0.02, help="Relative error below which nothing moves.", ge=0, le=10, advanced=True)
    interval: int = setting(100, help="Steps between two moves.", unit="steps", ge=1, le=100_000)
    rate: float = setting(0.05, help="Move of the log per averaged error.", ge=0, le=10, advanced=True)
    limit: float = setting(0.2, help="Largest averaged error that counts.", ge=0, le=10, advanced=True)

    def initial_state(self) -> dict[str, Any]:
        return {"updates": 0, "kl": {}, "error": dict.fromkeys(LEVELS, 0.0)}

    def update(
        self, state: dict[str, Any], seen: Observation, knobs: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        state = {"updates": state["updates"] + 1, "kl": dict(state["kl"]), "error": dict(state["error"])}
        moved: dict[str, float] = {}
        for name in LEVELS:
            found = seen.metrics.get(f"objective/kl_{name}", math.nan)
            if not math.isfinite(found):
                continue
            mean = self._averaged(found, state["kl"].get(name, found))
            state["kl"][name] = mean
            error = mean / self.target - 1
            if abs(error) < self.dead_zone or state["updates"] % self.interval:
                continue
            state["error"][name] = self._averaged(error, state["error"][name])
            change = self.rate * min(max(state["error"][name], -self.limit), self.limit)
            strength = min(max(knobs[f"kl_{name}"], LOWEST), HIGHEST) * math.exp(change)
            moved[f"kl_{name}"] = min(max(strength, LOWEST), HIGHEST)
        return state, moved

    def _averaged(self, new: float, old: float) -> float:
        return (1 - self.decay) * new + self.decay * old


PARTS = (ARESKL, ARESKLControl)
PRESETS: tuple[Preset, ...] = ()
