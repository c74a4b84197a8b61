"""What models do to their logits, read from their configs and compared with the models themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from trainer.kernels import head_of, linear_logprob_entropy

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
CONFIGS = [
    pytest.param(LlamaConfig(**SMALL), {"logit_scale": 1.0, "softcap": None}, id="llama"),
    pytest.param(Gemma2Config(**SMALL, final_logit_softcapping=0.5), {"logit_scale": 1.0, "softcap": 0.5}, id="gemma2"),
    pytest.param(CohereConfig(**SMALL, logit_scale=0.0625), {"logit_scale": 0.0625, "softcap": None}, id="cohere"),
    pytest.param(GraniteConfig(**SMALL, logits_scaling=8.0), {"logit_scale": 0.125, "softcap": None}, id="granite"),
]


@pytest.mark.parametrize(("config", "expected"), CONFIGS)
@torch.no_grad()
def test_log_probs_are_those_of_the_model(config, expected: dict) -> None:
    assert head_of(config) == expected
    model = AutoModelForCausalLM.from_config(config).eval()
    model.get_output_embeddings().weight.mul_(50)  # logits large enough to be capped
    ids = torch.randint(3, 40, (2, 9))
    theirs = model(ids).logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    states = model.base_model(ids).last_hidden_state
    ours = linear_logprob_entropy(states, model.get_output_embeddings().weight, ids, **head_of(config)).logprob
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_mapping_serves_as_well_and_nothing_named_is_nothing_done() -> None:
    assert head_of({"final_logit_softcapping": 30.0, "logits_scaling": 4}) == {"logit_scale": 0.25, "softcap": 30.0}
    assert head_of({"final_logit_softcapping": None, "logit_scale": None}) == {"logit_scale": 1.0, "softcap": None}
    assert head_of({"model_type": "hyperclovax", "logits_scaling": 4.0})["logit_scale"] == 4.0
