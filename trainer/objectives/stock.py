"""Parts as most presets take them, so that presets read as what they change."""

from __future__ import annotations

from typing import Any

Part = dict[str, Any]

GROUP: Part = {"type": "group_norm"}
GROUP_NO_STD: Part = {"type": "group_norm", "std": "none"}
CLIP: Part = {"type": "ppo_clip"}
CLIP_HIGHER: Part = {"type": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28}
TOKENS: Part = {"type": "token_mean"}
SEQUENCES: Part = {"type": "seq_mean_token_mean"}
BONUS: Part = {"type": "entropy_bonus"}
