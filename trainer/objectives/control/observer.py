"""Observer: what the entropy is and what moves it, from noisy measurements and predicted flows. Pure numbers, no torch.

A Kalman filter of four numbers. The entropy of a step's batch is that of the policy plus the luck of which prompts were
drawn; the flows are the first-order changes that the step's gradient predicts at every position by itself. A network
shares its weights and an optimiser rescales them, so the flows count by gains that are learnt here:

    entropy' = entropy + policy_gain * policy_flow + exp(log_gain) * actuator_flow + drift

The drift is what no flow explains, and it fades unless measurements renew it: an excess of the moment, planned with as
if it would last, would swing entropy about a course that turns. It takes the part of an integral: fed with the flows
that really were, also those of a saturated actuator, it has nothing to wind up.
"""

from __future__ import annotations

import math
from typing import Any

ENTROPY, POLICY, ACTUATOR, DRIFT = range(4)
Matrix = list[list[float]]

LEVEL_NOISE = 0.004  # what one step adds unpredictably, as a share of the entropy
DRIFT_NOISE = 0.01  # how far the drift wanders in a step, as a share of the entropy
GAIN_NOISE = 0.02  # how far the gains wander in a step, as a share
DRIFT_STAYS = 0.7  # share of the drift that is left a step later
DRIFT_PRIOR = 0.01  # share of the entropy in a step
SURPRISE = 4.0  # an innovation counts up to so many of its standard deviations
GAIN_RANGE = 1000.0  # the actuator's gain stays within this factor of its prior
LEAST_LUCK = 0.01  # share of the stated variance that is believed at least
LEARN_LUCK = 0.05  # weight of the last innovation in that share
POLICY_RANGE = (0.0, 10.0)


def born(entropy: float, variance: float, *, policy_gain: float, gain: float, sure: float) -> dict[str, Any]:
    """Return the state after the first measurement (nats, nats^2); `sure` is the std of the actuator gain's log."""
    diagonal = (variance, policy_gain**2, sure**2, (DRIFT_PRIOR * entropy) ** 2)
    return {
        "mean": [entropy, policy_gain, math.log(gain), 0.0],
        "covariance": [[value if i == j else 0.0 for j in range(4)] for i, value in enumerate(diagonal)],
        "prior": math.log(gain),
        "luck": 1.0,  # share of the stated variance that innovations show: far below 1 where prompts come again
        "seen": 0,
    }


def predicted(state: dict[str, Any], policy: float, actuator: float) -> dict[str, Any]:
    """Return the state one step later, given the flows of the step (nats per unit of gain)."""
    mean, before = list(state["mean"]), state["covariance"]
    slope = [1.0, policy, math.exp(mean[ACTUATOR]) * actuator, 1.0]  # d entropy' / d state
    mean[ENTROPY] = max(0.0, mean[ENTROPY] + mean[POLICY] * policy + slope[ACTUATOR] + mean[DRIFT])
    crossed = [sum(slope[k] * before[k][j] for k in range(4)) for j in range(4)]  # first row of F P
    after = [row[:] for row in before]
    after[ENTROPY] = crossed[:]
    for i in range(4):
        after[i][ENTROPY] = sum(after[i][k] * slope[k] for k in range(4))
    for i in range(1, 4):
        after[ENTROPY][i] = after[i][ENTROPY]
    mean[DRIFT] *= DRIFT_STAYS
    for i in range(4):
        after[i][DRIFT] *= DRIFT_STAYS
        after[DRIFT][i] *= DRIFT_STAYS  # and the variance twice
    level = max(mean[ENTROPY], 1e-3)
    noise = (LEVEL_NOISE * level, GAIN_NOISE * max(abs(mean[POLICY]), 0.1), GAIN_NOISE, DRIFT_NOISE * level)
    for i in range(4):
        after[i][i] += noise[i] ** 2
    return {**state, "mean": mean, "covariance": after}


def drifted(state: dict[str, Any], steps: int) -> float:
    """Return what the drift adds over the next steps, nats."""
    return state["mean"][DRIFT] * sum(DRIFT_STAYS**step for step in range(steps))


def corrected(state: dict[str, Any], measured: float, variance: float) -> dict[str, Any]:
    """Return the state after a measurement of the entropy (nats) that is stated to vary so much (nats^2)."""
    mean, before = list(state["mean"]), state["covariance"]
    seen, luck = state["seen"] + 1, state["luck"]
    if variance > 0:
        share = ((measured - mean[ENTROPY]) ** 2 - before[ENTROPY][ENTROPY]) / variance
        luck += max(1 / (1 + seen), LEARN_LUCK) * (min(max(share, 0.0), SURPRISE) - luck)
    total = before[ENTROPY][ENTROPY] + min(max(luck, LEAST_LUCK), 1.0) * variance
    if total <= 0:
        return state
    limit = SURPRISE * math.sqrt(total)
    innovation = min(max(measured - mean[ENTROPY], -limit), limit)
    gain = [before[i][ENTROPY] / total for i in range(4)]
    mean = [mean[i] + gain[i] * innovation for i in range(4)]
    after = [[before[i][j] - gain[i] * before[ENTROPY][j] for j in range(4)] for i in range(4)]
    mean[ENTROPY] = max(0.0, mean[ENTROPY])
    mean[POLICY] = min(max(mean[POLICY], POLICY_RANGE[0]), POLICY_RANGE[1])
    reach = math.log(GAIN_RANGE)
    mean[ACTUATOR] = min(max(mean[ACTUATOR], state["prior"] - reach), state["prior"] + reach)
    return {**state, "mean": mean, "covariance": after, "luck": luck, "seen": seen}
