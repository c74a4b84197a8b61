"""TRL's side of `--generation`: GRPOTrainer's own path from prompts to what it learns from, with vLLM colocated.

On a CPU it does not run as it comes: TRL's copying fails on weights that vLLM has packed. Where the job says so, two
things are mended from outside: vLLM gets options that TRL has no setting for (`vllm`: dtype, eager or compiled), and
TRL's copying happens between the start and the end of vLLM's own reloading (`reload`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # what its external launcher wants
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _probe as probe
import torch
from datasets import Dataset
from reward import variety
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.generation import vllm_generation
from watch import Watch

NAMED = ("torch", "transformers", "trl")


def generation(job: dict[str, Any]) -> dict[str, Any]:
    """Generate again and again from weights that stay, then once more from others."""
    torch.set_num_threads(job["threads"])
    vllm_generation.LLM = partial(vllm_generation.LLM, **job["trl"]["vllm"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = built(job, folder)
        if job["trl"]["reload"]:
            reloading(trainer.vllm_generation)
        watch = Watch(torch.cuda.synchronize if job["gpus"] else lambda: None)
        watch.method(trainer.vllm_generation, "sync_weights", "sync")
        watch.method(trainer.vllm_generation, "generate", "generate")
        watch.method(trainer, "_get_per_token_logps_and_entropies", "pass")
        found: dict[str, list[Any]] = {"seconds": [], "cpu": [], "tokens": [], "wall_parts": [], "cpu_parts": []}
        drawn: dict[str, torch.Tensor] = {}
        for _ in range(job["warmup"] + job["steps"]):
            drawn = draw(trainer, job, watch)
            found["seconds"].append(watch.wall["phase"])
            found["cpu"].append(watch.cpu["phase"])
            found["tokens"].append(int(drawn["completion_mask"].sum()))
            found["wall_parts"].append(dict(watch.wall))
            found["cpu_parts"].append(dict(watch.cpu))
        prompt = int(drawn["prompt_mask"].sum())
        before = mismatch(drawn)
        move(trainer.model)
        after = mismatch(draw(trainer, job, watch))
    return {
        **{name: values[job["warmup"] :] for name, values in found.items()},
        "prompt_tokens": prompt, "mismatch": before, "mismatch_moved": after, "peak_bytes": probe.peak(),
        "versions": {name: version(name) for name in (*NAMED, *packages_distributions()["vllm"])},
    }  # fmt: skip


def built(job: dict[str, Any], folder: str) -> GRPOTrainer:
    """Return a trainer that samples without ends, as many completions at once as a step has."""
    count = len(job["prompts"]) * job["samples"]
    config = GRPOConfig(
        output_dir=folder, use_cpu=not job["gpus"], bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=job["trl"]["per_device"],
        gradient_accumulation_steps=count // job["trl"]["per_device"],
        num_generations=job["samples"], max_completion_length=job["longest"], temperature=1.0, top_k=0,
        loss_type="dapo", beta=0.0, generation_kwargs={"ignore_eos": True},
        use_vllm=True, vllm_mode="colocate", vllm_max_model_length=job["room"],
        vllm_gpu_memory_utilization=job["trl"]["memory_share"],
    )  # fmt: skip

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [variety(text) for text in completions]

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return GRPOTrainer(
        model=model, reward_funcs=reward, args=config, processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
    )  # fmt: skip


def reloading(generation: Any) -> None:
    """Let TRL copy weights into a model that was unpacked for it, and pack it again, its tied head included."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

    plain, runner = generation.sync_weights, generation.llm.llm_engine.model_executor.driver_worker.model_runner
    model = runner.get_model()

    @torch.no_grad()
    def copied() -> None:
        initialize_layerwise_reload(model)
        plain()
        finalize_layerwise_reload(model, runner.model_config)
        for module in model.modules():
            if isinstance(module, VocabParallelEmbedding):
                module.quant_method.process_weights_after_loading(module)

    generation.sync_weights = copied


def draw(trainer: GRPOTrainer, job: dict[str, Any], watch: Watch) -> dict[str, torch.Tensor]:
    """Return a step's completions as TRL would learn from them, the weights having been copied first."""
    trainer.model.train()
    trainer._last_loaded_step = -1
    inputs = [{"prompt": prompt} for prompt in job["prompts"] for _ in range(job["samples"])]
    watch.begin()
    return watch.call("phase", trainer._generate_and_score_completions, inputs)


def mismatch(drawn: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of vLLM's and the trainer's log-probs, nats."""
    difference = (drawn["old_per_token_logps"] - drawn["sampling_per_token_logps"]) * drawn["completion_mask"]
    return float(difference.abs().max())


def move(model: torch.nn.Module) -> None:
    """Change all weights by a tenth, so that old ones would show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.1 * torch.randn_like(weight))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    given = probe.job()
    probe.answer(given, generation(given))
