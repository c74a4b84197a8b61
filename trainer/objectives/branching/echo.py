"""ECHO's rollout: branches where the policy is unsure and unconfident, more of them the less sure, and prunes paths."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from trainer.objectives.base import Step
from trainer.objectives.branching.growth import Branching, Prefix, prefix_setting
from trainer.objectives.preset import Preset, paper
from trainer.objectives.stock import CLIP, GROUP, TOKENS
from trainer.objectives.surrogates.echo import TOP, EchoAdvantage
from trainer.part import setting

if TYPE_CHECKING:
    from trainer.objectives.branching.echo_strategy import WideAndPruned
    from trainer.rollout.base import Scene

LEAST = {"concentration": math.log(TOP), "probability": 0.0}  # what a confidence can be at least, and at most
MOST = {"concentration": math.inf, "probability": 1 / TOP}
FORMULA = (
    r"B_t = \operatorname{clip}\Bigl(\mathrm{round}\bigl(1 + \alpha \tfrac{H_t - H_{\mathrm{low}}}"
    r"{H_{\mathrm{high}} - H_{\mathrm{low}}} - \beta \tfrac{C^G_t - \theta_b}{|\theta_b|}\bigr), 1, B_{\max}\Bigr)"
    r"\ \text{if}\ H_t \ge H_{\mathrm{high}},\ C^G_t \le \theta_b,\ \Delta H_t \ge \delta"
)


class EchoRollout(Branching):
    """Branching by entropy and confidence, with pruning (ECHO).

    A path forks once, at its first token where the policy's entropy is high and has risen and the confidence of the
    last tokens is low. The branches begin with the likeliest other tokens, more of them the higher the entropy and the
    lower the confidence. A path ends as pruned where confidence is very low, has fallen for several tokens to a low
    level, or entropy has risen for several tokens. What branches do not fill of a group is drawn from the prompt.
    """

    title: ClassVar[str] = "Branching by entropy and confidence (ECHO)"
    paper: ClassVar[str] = "2602.02150"
    formula: ClassVar[str] = FORMULA
    type: Literal["echo_rollout"] = "echo_rollout"
    roots: int = setting(4, help="Whole completions a prompt begins with.", unit="samples", ge=1, le=1024)
    depth: int = setting(3, help="Forks between the prompt and the end of a path at most.", ge=1, le=100)
    confidence: Literal["concentration", "probability"] = setting(
        "concentration",
        help="Of the five likeliest tokens: minus their mean log-prob, at least 1.61, as released, or their mean "
        "probability, at most 0.2, as described.",
    )
    min_depth: int = setting(4, help="Tokens in front of a fork at least.", unit="tokens", ge=0, le=1_000_000)
    entropy_high: float = setting(2.0, help="H_high: entropy from which a path forks.", unit="nats", ge=0, le=20)
    entropy_low: float = setting(1.0, help="H_low: entropy at which the width would be one.", unit="nats", ge=0, le=20)
    branch_confidence: float = setting(4.0, help="theta_b: confidence up to which a path forks.", gt=0, le=100)
    rise: float = setting(0.2, help="delta: rise of entropy from which a path forks.", unit="nats", ge=-20, le=20)
    width: int = setting(4, help="B_max: ways on from a fork at most, the old one counted.", ge=1, le=20)
    entropy_weight: float = setting(2.0, help="alpha: ways more for each H_high - H_low of entropy.", ge=0, le=100)
    confidence_weight: float = setting(
        1.0, help="beta: ways more for each theta_b that confidence lacks.", ge=0, le=100
    )
    prune_confidence: float = setting(1.7, help="theta_prune: confidence below which a path ends.", ge=0, le=100)
    tail_confidence: float = setting(
        2.0, help="theta_tail: confidence at which a path ends that has been falling.", ge=0, le=100
    )
    tail_steps: int = setting(3, help="Tokens that it must have fallen.", unit="tokens", ge=1, le=10000, advanced=True)
    rise_limit: float = setting(
        0.5, help="Delta_up: rise of entropy at which a path ends that has been rising.", unit="nats", ge=0, le=20
    )
    rise_steps: int = setting(3, help="Tokens that it must have risen.", unit="tokens", ge=1, le=10000, advanced=True)
    entropy_window: int = setting(
        4, help="W_H: tokens whose mean entropy the rise is over.", unit="tokens", ge=1, le=10000, advanced=True
    )
    confidence_window: int = setting(
        4, help="W_G: last tokens whose mean confidence counts.", unit="tokens", ge=1, le=10000, advanced=True
    )
    tail_window: int = setting(
        8, help="W_T: last tokens whose mean confidence is the tail's.", unit="tokens", ge=1, le=10000, advanced=True
    )
    prefix: Prefix = prefix_setting("counted", "The source does not say.")

    @model_validator(mode="after")
    def _ordered(self) -> EchoRollout:
        if self.entropy_low >= self.entropy_high:
            raise ValueError(
                f"entropy_low is {self.entropy_low}, not below entropy_high, {self.entropy_high}; lower it"
            )
        return self

    def remarks(self) -> list[str]:
        """Return which thresholds can never be met: a confidence has a least and a largest value."""
        least, most = LEAST[self.confidence], MOST[self.confidence]
        span = f"a confidence lies between {least:.2f} and {most:g}"
        said = []
        if self.branch_confidence < least:
            said.append(f"branch_confidence = {self.branch_confidence:g}: {span}, so no path ever forks; raise it")
        if self.prune_confidence <= least:
            said.append(f"prune_confidence = {self.prune_confidence:g}: {span}, so it never prunes; raise it")
        if self.prune_confidence > most:
            said.append(f"prune_confidence = {self.prune_confidence:g}: {span}, so every path is pruned; lower it")
        if self.tail_confidence < least:
            said.append(f"tail_confidence = {self.tail_confidence:g}: {span}, so it never prunes; raise it")
        return [f"{self.type}.{sentence}" for sentence in said]

    def beyond_plain(self) -> tuple[str, str]:
        return f"{self.type} reads the likeliest tokens of every place", f"remove {self.type}"

    def strategy(self, scene: Scene, step: Step) -> WideAndPruned:
        from trainer.objectives.branching.echo_strategy import WideAndPruned

        return WideAndPruned(scene, self)


PARTS = (EchoRollout,)
PRESETS = (
    Preset(
        name="echo-rollout",
        title="ECHO (whole method)",
        summary="Answers branch where the policy is unsure and unconfident, and paths that lose their way are cut "
        "short; "
        "all of them vote, and the update of the preset echo follows. Budget goes to open questions, so the vote is "
        "broader, and entropy falls more slowly than with a plain vote.",
        when="Training on majority votes with several minibatches per step, where the thresholds have been fitted to "
        "the model: see rollout/forks and rollout/pruned_share.",
        formula=FORMULA + r",\quad " + EchoAdvantage.formula,
        reference=paper(
            "ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning", "2602.02150", 2026
        ),
        confidence="reconstructed",
        assumed="How a rollout consumes the branch plan: the old path is one of the ways on, the others begin with the "
        "likeliest other tokens; a path forks once. Number of whole completions first, depth, which shared tokens "
        "count. Paths are pruned after the fact, which saves no tokens. H_high 2, theta_b 4, theta_prune 1.7 and "
        "theta_tail 2: the published 3.5, 1.2, 0.4 and 1 can never be met, for a confidence over five tokens is at "
        "least ln 5 = 1.61, and the entropy of 20 renormalised tokens at most ln 20 = 3.0. Here entropy is exact, over "
        "all tokens.",
        variants="The released controller raises an error on first use (a misspelt field), so its numbers are "
        "untested. "
        "The penalty for pruned paths is left out: what it is added to was not to be found. They are graded as cut.",
        parts=[
            {"type": "echo_rollout"},
            {"type": "majority_vote"},
            GROUP,
            {"type": "echo_advantage"},
            {"type": "echo_clip"},
            CLIP,
            TOKENS,
        ],
    ),
)
