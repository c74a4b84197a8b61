"""PRESETS: named lists of parts. A new method is a row here; what it lists must be in PARTS."""

from __future__ import annotations

from trainer.objectives.base import Preset, Reference

GRPO = Reference(
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arxiv="2402.03300",
    year=2024,
    url="https://arxiv.org/abs/2402.03300",
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="grpo",
            title="GRPO",
            summary="x",
            reference=GRPO,
            confidence="code",
            parts=[{"type": "group_norm"}, {"type": "ppo_clip"}, {"type": "token_mean"}],
        ),
    )
}
