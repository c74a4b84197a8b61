"""TRL's side: GRPOTrainer on one job, in an environment of its own; started by `python bench/vs_trl`.

Recorded rollouts enter through GRPOTrainer's own `rollout_func`; everything behind it is TRL's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _probe as probe
import torch
from datasets import Dataset
from reward import variety
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PADDED = ("completion_ids", "completion_mask")


class Watched(GRPOTrainer):
    """GRPOTrainer that notes its losses and how long it generates; the arithmetic is the parent's."""

    losses: list[torch.Tensor]
    sampled: list[float]
    tokens: list[int]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = super()._generate_single_turn(*args, **kwargs)
        self.sampled.append(time.perf_counter() - began)
        self.tokens.append(sum(len(ids) for ids in found[0]))
        return found


class Sorted(Watched):
    """What somebody who knows TRL well would add: micro-batches of like lengths, cut to their longest completion.

    TRL pads to the longest completion of the whole step and shuffles; it has no setting for this.
    """

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        fresh = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        inputs = super()._prepare_inputs(generation_batch)
        if not fresh:
            return inputs
        whole = {
            name: torch.cat([part[name] for part in self._buffered_inputs]) if value.ndim else value
            for name, value in inputs.items()
        }
        order = whole["completion_mask"].sum(1).argsort(descending=True)
        parts = order.chunk(self.args.steps_per_generation)
        self._buffered_inputs = [_cut(whole, part) for part in parts]
        return self._buffered_inputs[0]


def _cut(whole: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Return some rows of a step without the columns that are padding in all of them."""
    part = {name: value[rows] if value.ndim else value for name, value in whole.items()}
    longest = int(part["completion_mask"].sum(1).max())
    return {name: value[:, :longest] if name in PADDED else value for name, value in part.items()}


class Clock(TrainerCallback):
    """Times each optimiser step, and keeps the gradients of the first where asked."""

    def __init__(self, gradients: str | None) -> None:
        self.gradients, self.seconds, self.cpu = gradients, list[float](), list[float]()
        self.began, self.loaded = (0.0, 0.0), 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        probe.forget_peak()
        self.loaded = probe.resident()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        if self.gradients:
            torch.save({name: p.grad.clone() for name, p in model.named_parameters()}, self.gradients)
            self.gradients = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])


def config(job: dict[str, Any], folder: str, longest: int, samples: int) -> GRPOConfig:
    """Return the job's settings in TRL's words."""
    optimiser, settings = job["optimiser"], job["trl"]
    return GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1,
        disable_tqdm=True, shuffle_dataset=False, max_steps=job["warmup"] + job["steps"],
        per_device_train_batch_size=settings["per_device"],
        gradient_accumulation_steps=settings["completions"] // settings["per_device"],
        gradient_checkpointing=settings["checkpointing"], use_liger_kernel=settings["liger"],
        num_generations=samples, max_completion_length=longest, temperature=1.0, top_k=0,
        loss_type="dapo", epsilon=0.2, epsilon_high=0.2, beta=0.0, num_iterations=1, scale_rewards="group",
        entropy_coef=job["entropy_coefficient"],
        learning_rate=optimiser["learning_rate"], lr_scheduler_type="constant", warmup_steps=0,
        adam_beta1=optimiser["beta1"], adam_beta2=optimiser["beta2"], adam_epsilon=optimiser["epsilon"],
        weight_decay=0.0, max_grad_norm=optimiser["max_gradient_norm"],
        generation_kwargs=settings.get("generation"),
    )  # fmt: skip


def replay(job: dict[str, Any]) -> dict[str, Any]:
    """Learn from recorded rollouts again and again."""
    recorded = json.loads(Path(job["rollouts"]).read_text("utf-8"))
    samples, rewards = recorded["samples"], recorded["rewards"]

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        ids = [prompt for prompt in recorded["prompts"] for _ in range(samples)]
        assert len(prompts) == len(ids)
        return {"prompt_ids": ids, "completion_ids": recorded["completions"], "logprobs": None}

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return rewards

    rows = Dataset.from_dict({"prompt": [f"t{index + 9}" for index in range(len(recorded["prompts"]))]})
    return train(job, rows, reward, recorded["longest"], samples, rollout_func=rollout)


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Sample, grade and learn, as users do."""

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [variety(text[-1]["content"]) for text in completions]

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in job["prompts"]])
    return train(job, rows, reward, job["longest"], job["samples"])


def train(
    job: dict[str, Any], rows: Dataset, reward: Any, longest: int, samples: int, **options: Any
) -> dict[str, Any]:
    """Train and return what was measured after the warm-up."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    clock = Clock(job.get("gradients"))
    kind = Sorted if job["trl"]["sorted"] else Watched
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=model, reward_funcs=reward, args=config(job, folder, longest, samples), train_dataset=rows,
            processing_class=tokenizer, callbacks=[clock], **options,
        )  # fmt: skip
        trainer.losses, trainer.sampled, trainer.tokens = [], [], []
        trainer.train()
    each = trainer.args.gradient_accumulation_steps
    losses = [sum(float(x) for x in trainer.losses[i : i + each]) for i in range(0, len(trainer.losses), each)]
    history = [entry for entry in trainer.state.log_history if "entropy" in entry]
    after = slice(job["warmup"], None)
    return {
        "seconds": clock.seconds[after], "cpu": clock.cpu[after], "loaded_bytes": clock.loaded,
        "sampled": trainer.sampled[after], "tokens": trainer.tokens[after], "peak_bytes": probe.peak(),
        "losses": losses, "entropy": [entry["entropy"] for entry in history],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "datasets")},
    }  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    given = probe.job()
    probe.answer(given, {"replay": replay, "step": step}[given["mode"]](given))
