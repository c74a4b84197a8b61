"""Our side of `--generation`: the Trainer's own path from prompts to what it learns from, with the vllm engine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from side_ours import Grader, built, config, probe, versions
from watch import Watch


def generation(job: dict[str, Any]) -> dict[str, Any]:
    """Generate again and again from weights that stay, then once more from others."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        trainer = ready(job, Path(folder))
        engine = trainer.collector.engine
        watch = Watch(torch.cuda.synchronize if job["gpus"] else lambda: None)
        watch.method(trainer.supply.sync, "to", "sync")
        watch.method(engine, "run", "generate")
        found: dict[str, list[Any]] = {"seconds": [], "cpu": [], "tokens": [], "wall_parts": [], "cpu_parts": []}
        drawn: list[Any] = []
        for step in range(1, job["warmup"] + job["steps"] + 1):
            drawn = draw(trainer, step, watch)
            found["seconds"].append(watch.wall["phase"])
            found["cpu"].append(watch.cpu["phase"])
            found["tokens"].append(sum(len(one.tokens.completion) for one in drawn))
            found["wall_parts"].append(dict(watch.wall))
            found["cpu_parts"].append(dict(watch.cpu))
        prompt = sum(len(one.tokens.prompt) for one in drawn)
        before = mismatch(trainer, drawn)
        move(trainer.policy.lm)
        after = mismatch(trainer, draw(trainer, job["warmup"] + job["steps"] + 1, watch))
        peak = probe.peak()
        trainer.close()
    return {
        **{name: values[job["warmup"] :] for name, values in found.items()},
        "prompt_tokens": prompt, "mismatch": before, "mismatch_moved": after, "peak_bytes": peak,
        "versions": versions(),
    }  # fmt: skip


def ready(job: dict[str, Any], folder: Path) -> Any:
    """Return a Trainer whose steps take all prompts but one, held out, and whose completions have no ends."""
    table = folder / "rows.jsonl"
    rows = [*job["prompts"], job["held_out"]]
    table.write_text("".join(json.dumps({"prompt": prompt, "answer": "0"}) + "\n" for prompt in rows), "utf-8")
    task = {"type": "dataset", "path": str(table), "held_out_rows": 1, "chat_template": False}
    count = len(job["prompts"]) * job["samples"]
    sampling = {
        "prompts_per_step": len(job["prompts"]), "samples_per_prompt": job["samples"], "engine": "vllm",
        "max_completion_tokens": job["longest"], "max_prompt_tokens": job["room"] - job["longest"],
        "vllm": {"max_sequences": count},
    }  # fmt: skip
    settings = {
        "sampling": sampling, "model": {"source": job["model"], "dtype": job["dtype"]},
        "resources": {"cpu_threads": job["threads"], "gpus": job["gpus"]},
    }  # fmt: skip
    job = {**job, "config": settings, "entropy_coefficient": 0.0}
    trainer = built(config(job, len(job["prompts"]), job["samples"], {}, task), folder)
    trainer.collector.pool = Grader()
    trainer.collector.engine.driver.stop_ids = frozenset()
    return trainer


def draw(trainer: Any, step: int, watch: Watch) -> list[Any]:
    """Return a step's completions as the loop would learn from them, the weights having been copied first."""

    def phase() -> list[Any]:
        drawn = trainer.supply.take(trainer._settings(step), None).completions
        if trainer.supply.old_logprobs.choice == "score":
            watch.call("pass", trainer.policy.score, [one.tokens for one in drawn], 1.0)
        return drawn

    watch.begin()
    return watch.call("phase", phase)


def mismatch(trainer: Any, drawn: list[Any]) -> float:
    """Return the largest difference of vLLM's and the trainer's log-probs, nats."""
    theirs = [value for one in drawn for value in one.engine_logprob]
    ours = trainer.policy.score([one.tokens for one in drawn], 1.0)["logprob"].tolist()
    return max(abs(one - other) for one, other in zip(theirs, ours, strict=True))


def move(model: Any) -> None:
    """Change all weights by a tenth, so that old ones would show."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.1 * torch.randn_like(weight))


if __name__ == "__main__":
    given = probe.job()
    probe.answer(given, generation(given))
