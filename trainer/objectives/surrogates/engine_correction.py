"""GRPO corrected for an engine whose log-probs differ from the trainer's: the two usual ways, as presets."""

from __future__ import annotations

from trainer.objectives.preset import Preset, Reference
from trainer.objectives.stock import GROUP, TOKENS

WHEN = (
    "Rollouts come from vLLM, in bfloat16 or drawn ahead of the update, and mismatch/mean_abs or mismatch/k3 is no "
    "longer small. With sampling.engine = hf both log-probs agree and nothing changes."
)
VARIANTS = (
    "Both log-probs are the raw policy's at the training temperature, so the weights say how the numbers differ and "
    "nothing of top-p, top-k, min-p or modifiers: truncated sampling is refused with it. "
)

PARTS = ()
PRESETS = (
    Preset(
        name="grpo-tis",
        title="GRPO with truncated importance sampling (TIS)",
        summary="Every token's loss is weighed by the trainer's probability over the engine's, at most 2: what the "
        "engine drew too often counts less.",
        when=WHEN,
        formula=r"w_t = \min\Bigl(\frac{\pi_{\text{old}}(o_t)}{\pi_{\text{engine}}(o_t)}, C\Bigr),\quad C = 2",
        reference=Reference(
            title="Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
            year=2025,
            url="https://fengyao.notion.site/off-policy-rl",
        ),
        confidence="secondary",
        variants=VARIANTS + "verl cuts at 2 by default; values up to 8 are used.",
        parts=[GROUP, {"type": "ppo_clip", "correction": "token"}, TOKENS],
    ),
    Preset(
        name="grpo-mis",
        title="GRPO with masked completions (MIS)",
        summary="A completion that the engine found much less likely than the trainer, by a factor above 3 over all "
        "its tokens, is masked out; the others are weighed by that factor.",
        when=WHEN,
        formula=r"w = \rho\,[\rho \le C],\quad \rho = \prod_t \frac{\pi_{\text{old}}(o_t)}{\pi_{\text{engine}}(o_t)},"
        r"\quad C = 3",
        reference=Reference(
            title="TRL: vLLM importance sampling, mode sequence_mask",
            year=2025,
            url="https://huggingface.co/docs/trl/grpo_trainer",
        ),
        confidence="code",
        variants=VARIANTS
        + "The default of TRL. At 1,000 tokens a mean difference of 0.001 nats already makes a factor "
        "of 2.7, so long completions are masked easily.",
        parts=[
            GROUP,
            {"type": "ppo_clip", "correction": "sequence", "correction_mode": "mask", "correction_cap": 3.0},
            TOKENS,
        ],
    ),
)
