"""Names for people: what title case and underscores cannot say."""

from __future__ import annotations

ACRONYMS = {
    "gpus": "GPUs",
    "cpu": "CPU",
    "lora": "LoRA",
    "kl": "KL",
    "top_p": "Top-p",
    "top_k": "Top-k",
    "min_p": "Min-p",
    "dtype": "Number format",
}
NAMES = {"every_steps": "Every", "keep": "Keep newest", "seed": "Seed", "minibatches_per_step": "Minibatches per step"}


def words(name: str) -> str:
    """Return `prompts_per_step` as `Prompts per step`, `cpu_threads` as `CPU threads`."""
    if known := NAMES.get(name) or ACRONYMS.get(name):
        return known
    text = " ".join(ACRONYMS.get(part, part) for part in name.split("_"))
    return text[:1].upper() + text[1:]
