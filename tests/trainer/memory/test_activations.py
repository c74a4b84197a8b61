"""What the planner counts from shapes, against what autograd saves in real layers."""

from __future__ import annotations

import random
from typing import Any

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.trainer.runs import events, make, metrics, small, start
from trainer.config import load
from trainer.footprint import Passes
from trainer.forward import choose
from trainer.memory.activations import layer_bytes
from trainer.memory.batch import Batch
from trainer.model_files import inspect_folder
from trainer.models import inspect
from trainer.rectangles import Trajectory

PROMPTS, SAMPLES, PROMPT, COMPLETION = 3, 4, 10, 60
CPU = torch.device("cpu")


def model(kind: str, layers: int) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "gpt2":
        shape = {"n_embd": 64, "n_layer": layers, "n_head": 4, "vocab_size": 50}
        return GPT2LMHeadModel(GPT2Config(**shape, activation_function="gelu_pytorch_tanh")).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32, num_hidden_layers=layers, vocab_size=50)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_hidden_layers=layers, vocab_size=50)).eval()


def trajectories() -> list[Trajectory]:
    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.randrange(2, 50) for _ in range(count))

    return [
        Trajectory(prompt, ids(COMPLETION)) for prompt in (ids(PROMPT) for _ in range(PROMPTS)) for _ in range(SAMPLES)
    ]


def left(lm: Any, dtype: str, rows: list[Trajectory]) -> int:
    """Return the bytes that one forward pass leaves for its backward pass."""
    forward = choose(lm, CPU, dtype=dtype)
    assert forward.name == "packed rows, tiles"
    passes = Passes(lm.base_model, CPU)
    states = forward.states(lm.base_model, rows, CPU)
    found = passes.largest
    states.sum().backward()
    forward.states(lm.base_model, rows, CPU)  # the pass before is done with: it does not count any more
    assert passes.largest == found
    return found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gpt2"])
def test_layers_leave_what_their_shapes_say(tmp_path, kind: str, dtype: str, lora: bool) -> None:
    sampling = {
        "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES,
        "max_prompt_tokens": PROMPT, "max_completion_tokens": COMPLETION,
    }  # fmt: skip
    config = load({"sampling": sampling, "model": {"dtype": dtype, "lora": {"enabled": lora, "rank": 8}}})
    rows, found = trajectories(), []
    for layers in (1, 3):
        lm = model(kind, layers).to(getattr(torch, dtype))
        lm.save_pretrained(tmp_path / str(layers))
        if lora:
            peft.get_peft_model(lm, peft.LoraConfig(r=8, task_type="CAUSAL_LM", target_modules="all-linear"))
        found.append(left(lm, dtype, rows))
    info = inspect_folder(tmp_path / "3", source="test", kind="folder")
    tokens = PROMPTS * (PROMPT + SAMPLES * (COMPLETION - 1))  # nothing follows a last token
    measured = (found[1] - found[0]) / 2 / tokens
    assert layer_bytes(info, config.model, Batch.of(config)) == pytest.approx(measured, rel=0.02)


def test_a_run_says_what_was_expected_and_what_it_measured(tmp_path) -> None:
    config = small(optimiser={"steps": 2}, evaluation={"every_steps": 0})
    folder = make(tmp_path / "run", config)
    assert start(folder).wait() == 0
    foretold = events(folder, "started")[0]["memory"]
    values = metrics(folder, timeless=False)[2]
    parameters = inspect(config.model.source).parameters
    assert values["memory/weights_bytes"] == foretold["update"]["weights"] == 4 * parameters
    assert values["memory/optimiser_bytes"] == pytest.approx(foretold["update"]["optimiser"], rel=0.001)
    assert values["memory/predicted_bytes"] == max(sum(parts.values()) for parts in foretold.values())
    assert 0 < values["memory/activations_bytes"] < foretold["update"]["activations"]
    heads = [parts.get("head", 0) for parts in foretold.values()]  # of the fullest moment of each phase
    assert 0 < values["memory/logits_bytes"] <= max(heads)
    assert values["memory/peak_bytes"] > values["memory/weights_bytes"] + values["memory/optimiser_bytes"]
    if torch.__version__.endswith("+cpu"):  # other builds load other libraries
        assert values["memory/predicted_bytes"] == pytest.approx(values["memory/peak_bytes"], rel=0.15)
