"""Models that scale or cap their logits: scored, differentiated and sampled as they compute them themselves."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import ModelConfig, load
from trainer.errors import ConfigError
from trainer.models import resolve
from trainer.policy import Policy, Trajectory
from trainer.rollout import GenRequest, SamplerSpec, engine

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FORMS = {
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "tie_word_embeddings": False},
}


def folder(path: Path, kind: str, **changes: Any) -> Path:
    """Write a small random model of a kind, with the tokenizer of the built-in one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = resolve("builtin:countdown-tiny").path
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path.mkdir(exist_ok=True)
        shutil.copy(source / name, path / name)
    config = AutoConfig.for_model(kind, vocab_size=20, **SMALL, **FORMS.get(kind, {}), **changes)
    lm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    lm.save_pretrained(path)
    return path


@pytest.fixture(params=FORMS)
def policy(request, tmp_path) -> Policy:
    torch.manual_seed(random.randrange(1 << 30))
    found = Policy(folder(tmp_path / "model", request.param), ModelConfig(), CPU)
    found.budget = 64
    return found


def plain(policy: Policy, row: Trajectory, heat: float) -> torch.Tensor:
    """Return log-probs over the vocabulary at each completion token from the model's own logits, [n, V]."""
    ids = torch.tensor([row.prompt + row.completion])
    logits = policy.lm(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
    return torch.log_softmax(logits.double() / heat, -1)


def rows() -> list[Trajectory]:
    dice = random.Random()
    make = lambda count: tuple(dice.randrange(3, 20) for _ in range(count))  # noqa: E731
    prompt = make(4)
    return [Trajectory(prompt, make(5)), Trajectory(prompt, make(2)), Trajectory(make(3), make(7))]


@torch.no_grad()
def test_the_form_matters_for_these_models(policy):
    """The comparisons below would pass for any form if the random models hardly scaled."""
    hidden = policy.hidden(torch.tensor([[3, 4, 5]]), use_cache=False)[0]
    bare = torch.nn.functional.linear(hidden, policy.head)
    assert float((bare - policy.logits(hidden)).abs().max()) > 0.1


def test_statistics_are_those_of_the_models_own_logits(policy):
    sequences = rows()
    found = policy.score(sequences, 0.8, names=("sum_p2", "tempered_entropy"), options={"second_temperature": 1.5})
    for name, taken in {
        "logprob": lambda logp, ids: logp.gather(1, ids[:, None]).squeeze(1),
        "entropy": lambda logp, ids: -(logp.exp() * logp).sum(-1),
        "sum_p2": lambda logp, ids: logp.exp().square().sum(-1),
    }.items():
        expected = [taken(plain(policy, row, 0.8), torch.tensor(row.completion)) for row in sequences]
        torch.testing.assert_close(found[name].double(), torch.cat(expected).detach(), rtol=1e-4, atol=1e-5)
    warm = torch.cat([plain(policy, row, 1.5) for row in sequences])
    torch.testing.assert_close(
        found["tempered_entropy"].double(), -(warm.exp() * warm).sum(-1).detach(), rtol=1e-4, atol=1e-5
    )


def test_gradients_are_those_of_the_models_own_logits(policy):
    sequences, dice = rows(), torch.Generator().manual_seed(random.randrange(1 << 30))
    count = sum(len(row.completion) for row in sequences)
    g_logprob, g_entropy = torch.randn(2, count, generator=dice)
    logp = torch.cat([plain(policy, row, 0.8) for row in sequences])
    ids = torch.tensor([token for row in sequences for token in row.completion])
    taken, nats = logp.gather(1, ids[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
    expected = torch.autograd.grad((g_logprob * taken + g_entropy * nats).sum(), policy.parameters)
    policy.backward(sequences, 0.8, g_logprob, g_entropy, lambda: None)
    for parameter, gradient in zip(policy.parameters, expected, strict=True):
        assert float((parameter.grad - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6


def test_what_sampling_says_is_what_the_model_says(policy):
    requests = [
        GenRequest(id=i, group=0, sample=i, prompt_ids=(3, 4, 5), seed=random.randrange(1 << 30), max_new=6,
                   sampler=SamplerSpec(0.8))
        for i in range(5)
    ]  # fmt: skip
    for request, made in zip(requests, engine("hf", policy).run(requests), strict=True):
        logp = plain(policy, Trajectory(request.prompt_ids, tuple(made.ids)), 0.8)
        said = torch.tensor(made.logprob, dtype=torch.float64)
        torch.testing.assert_close(said, logp[range(len(made.ids)), made.ids].detach(), rtol=1e-4, atol=1e-4)
        nats = -(logp.exp() * logp).sum(-1).detach()
        torch.testing.assert_close(torch.tensor(made.entropy, dtype=torch.float64), nats, rtol=1e-4, atol=1e-4)


def test_logits_changed_in_a_way_nobody_knows_are_refused(tmp_path, monkeypatch):
    from transformers.models.cohere.modeling_cohere import CohereForCausalLM

    honest = CohereForCausalLM.forward

    def shifted(self, *args, **options):
        out = honest(self, *args, **options)
        out.logits = out.logits + torch.arange(out.logits.shape[-1])
        return out

    monkeypatch.setattr(CohereForCausalLM, "forward", shifted)
    with pytest.raises(ConfigError, match="neither a scale nor a soft-cap") as caught:
        Policy(folder(tmp_path / "model", "cohere"), ModelConfig(), CPU)
    assert caught.value.field == "model.source"


def test_a_kernel_this_device_cannot_run_is_refused_with_the_field(tmp_path):
    made = Policy(resolve("builtin:countdown-tiny").path, ModelConfig(), CPU)
    config = load({"resources": {"kernel": "triton"}})
    with pytest.raises(ConfigError, match=r"^resources.kernel: .*chunked") as caught:
        made.output.use(config.resources.head_contract, config.resources.kernel)
    assert caught.value.field == "resources.kernel"


def test_the_kernel_chosen_computes_every_pass(monkeypatch):
    from trainer.kernels import rooms

    policy = Policy(resolve("builtin:countdown-tiny").path, ModelConfig(), CPU)
    policy.budget = 64
    policy.output.use("auto", "reference")
    taken: list[str] = []
    monkeypatch.setattr(
        "trainer.kernels.door.choose_room", lambda *given: taken.append(given[1]) or rooms.choose_room(*given)
    )
    policy.score([Trajectory((1, 2), (3, 4))], 1.0, names=("sum_p2",))
    assert taken
    assert set(taken) == {"reference"}
