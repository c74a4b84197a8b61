"""PRESETS: named lists of parts. A new method is a row here; what it lists must be in PARTS."""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import Preset, Reference


def paper(title: str, arxiv: str, year: int) -> Reference:
    return Reference(title=title, arxiv=arxiv, year=year, url=f"https://arxiv.org/abs/{arxiv}")


GRPO = paper("DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", "2402.03300", 2024)
DAPO = paper("DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "2503.14476", 2025)
DR_GRPO = paper("Understanding R1-Zero-Like Training: A Critical Perspective", "2503.20783", 2025)
A3C = paper("Asynchronous Methods for Deep Reinforcement Learning", "1602.01783", 2016)
SKYWORK = paper("Skywork Open Reasoner 1 Technical Report", "2505.22312", 2025)
MECHANISM = paper("The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", "2505.22617", 2025)
BEYOND_80_20 = paper(
    "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective RL for LLM Reasoning", "2506.01939", 2025
)
AEPO = paper("Arbitrary Entropy Policy Optimization (later versions: SCOPE-RL)", "2510.08141", 2025)
ENTROCRAFT = paper("Entrocraft", "2604.26326", 2026)

GROUP, TOKENS = {"type": "group_norm"}, {"type": "token_mean"}
BONUS: dict[str, Any] = {"type": "entropy_bonus"}
CLIP = {"type": "ppo_clip"}
CLIP_HIGHER = {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="grpo",
            title="GRPO",
            summary="Each completion is compared with the others of its prompt; the clipped ratio is averaged over all "
            "tokens. Nothing holds entropy: it falls as reward rises, and answers become alike.",
            when="The baseline to compare everything with.",
            reference=GRPO,
            confidence="code",
            parts=[GROUP, CLIP, TOKENS],
        ),
        Preset(
            name="dapo",
            title="DAPO",
            summary="GRPO with a higher upper clip that lets rare tokens grow, a penalty that sets in softly before "
            "the length limit, and prompts without a difference in reward left out (they are not sampled again).",
            when="Long answers and several updates on each rollout batch.",
            reference=DAPO,
            confidence="code",
            parts=[
                {"type": "soft_overlong"},
                GROUP,
                {"type": "zero_variance_filter"},
                CLIP_HIGHER | {"dual_clip": 10.0},
                TOKENS,
            ],
        ),
        Preset(
            name="dr-grpo",
            title="Dr. GRPO",
            summary="GRPO without its two biases: no division by the group's std, which favours nearly solved prompts, "
            "and no division by length, which favours long wrong answers.",
            when="Answers grow longer without getting better.",
            reference=DR_GRPO,
            confidence="code",
            parts=[{"type": "group_norm", "std": "none"}, CLIP, {"type": "const_norm"}],
        ),
        Preset(
            name="entropy-bonus",
            title="Entropy bonus",
            summary="GRPO plus a fixed price on lost entropy, exact and differentiable. It slows the fall of entropy "
            "but holds it nowhere; too large a coefficient drives the policy to noise.",
            when="A first try against collapse; steer the coefficient while the run is alive.",
            reference=A3C,
            confidence="code",
            parts=[GROUP, CLIP, BONUS | {"coefficient": 0.01}, TOKENS],
        ),
        Preset(
            name="skywork-adaptive",
            title="Adaptive entropy coefficient",
            summary="The coefficient of the entropy bonus climbs by a small step while entropy is below a floor and "
            "comes down while it is above; the bonus counts only below the floor, so it cannot run away.",
            when="A safe floor under entropy, in no hurry: at the default step it takes tens of updates to act.",
            reference=SKYWORK,
            confidence="code",
            parts=[GROUP, CLIP, BONUS, TOKENS, {"type": "skywork"}],
        ),
        Preset(
            name="clip-cov",
            title="Clip-Cov",
            summary="Entropy falls most through tokens that are both likely and rewarded: their advantage and log-prob "
            "vary together. A random few of them get no gradient.",
            when="Long completions with thousands of tokens per step; raise the share for small batches.",
            reference=MECHANISM,
            confidence="code",
            parts=[
                GROUP,
                {"type": "clip_cov"},
                {"type": "ppo_clip", "clip_low": 1.0, "clip_high": 1.0, "dual_clip": 0.0},
                TOKENS,
            ],
        ),
        Preset(
            name="kl-cov",
            title="KL-Cov",
            summary="The same tokens as Clip-Cov, the few with the largest covariance, are held near the policy that "
            "sampled them by a penalty on the log ratio; the ratio is not clipped.",
            when="Several minibatches per step: in the first update on fresh rollouts the penalty has no gradient.",
            reference=MECHANISM,
            confidence="code",
            parts=[GROUP, {"type": "importance_ratio"}, {"type": "kl_cov"}, TOKENS],
        ),
        Preset(
            name="top-entropy-mask",
            title="80/20: high-entropy tokens only",
            summary="Only the fifth of the tokens where the policy hesitates most is trained on: the forks decide "
            "where the reasoning goes, the rest follows.",
            when="Reasoning with long answers; entropy tends to stay higher than under DAPO.",
            reference=BEYOND_80_20,
            confidence="code",
            parts=[GROUP, {"type": "top_entropy"}, CLIP_HIGHER, TOKENS],
        ),
        Preset(
            name="aepo",
            title="AEPO",
            summary="A part of the prompts is sampled again, hotter when entropy is below its target and colder when "
            "above; right answers among them replace rows of the batch with advantage 1.",
            when="Moving entropy to a chosen level through what is imitated, without an entropy term in the loss.",
            reference=AEPO,
            confidence="code",
            parts=[
                {"type": "aepo_sampling"},
                GROUP,
                {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.3},
                TOKENS,
                {"type": "auxiliary_temperature"},
            ],
        ),
        Preset(
            name="scope-rl",
            title="SCOPE-RL",
            summary="The later form of AEPO: the side temperature follows the distance to the target, and right side "
            "answers enter as a small term of their own beside the GRPO loss. How many prompts are sampled again is "
            "our choice; the paper gives only the weight.",
            when="As AEPO, with smoother control.",
            reference=AEPO,
            confidence="secondary",
            parts=[
                {"type": "scope_sampling"},
                GROUP,
                CLIP,
                {"type": "scope_term"},
                TOKENS,
                {"type": "auxiliary_temperature", "rule": "proportional"},
            ],
        ),
        Preset(
            name="entrocraft",
            title="Entrocraft",
            summary="Entropy is led along a scheduled band by choosing what to learn from: above the band only "
            "completions with advantage >= 0, below it only those with advantage <= 0. The band can be drawn. The "
            "authors add a k3 KL penalty of 0.001 to the reference model; add kl_penalty for it.",
            when="A planned course of entropy over the run, with any advantage.",
            reference=ENTROCRAFT,
            confidence="paper",
            parts=[GROUP, {"type": "entrocraft"}, CLIP, TOKENS],
        ),
        Preset(
            name="entropy-target",
            title="Target entropy",
            summary="GRPO with exact entropy held at a target of your choice: a PI controller moves the entropy "
            "coefficient between a floor and a cap after every step. The target may follow a drawn course and can be "
            "steered while the run is alive. A dial for diversity, no promise of higher reward.",
            when="You want entropy to be where you say, and to change it on the way.",
            reference=Reference(title="Isentrope's own controller; see docs/objectives.md"),
            confidence="own",
            parts=[GROUP, CLIP, BONUS, TOKENS, {"type": "entropy_target"}],
        ),
    )
}
