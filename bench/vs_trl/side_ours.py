"""Our side: Isentrope's trainer on one job; started by `python bench/vs_trl`.

The whole Trainer is built, as for a run; recorded rollouts go to its Updater as the loop would hand them over.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH.parent), str(BENCH)]

import _probe as probe  # noqa: E402
from reward import variety  # noqa: E402

from trainer.attempt import prepare_environment  # noqa: E402
from trainer.config import RunConfig, load  # noqa: E402
from trainer.events import RunFolder  # noqa: E402


def config(job: dict[str, Any], prompts: int, samples: int, tokens: dict[str, int], task: dict[str, Any]) -> RunConfig:
    """Return the job's settings in our words: TRL's `dapo` loss is GRPO's token mean."""
    parts: list[dict[str, Any]] = [{"type": "group_norm", "epsilon": 1e-4}]  # TRL's epsilon
    if job["entropy_coefficient"]:
        parts.append({"type": "entropy_bonus", "coefficient": job["entropy_coefficient"]})
    return load({
        "model": {"source": job["model"], "dtype": "float32"},
        "task": task,
        "sampling": {"prompts_per_step": prompts, "samples_per_prompt": samples, **tokens},
        "objective": {"preset": "grpo", "parts": parts},
        "optimiser": {
            **job["optimiser"], "steps": job["warmup"] + job["steps"], "warmup_steps": 0,
            "old_logprobs": job.get("old_logprobs", "auto"),
        },
        "evaluation": {"every_steps": 0, "prompts": 1, "samples_per_prompt": 1, "greedy": False},
        "resources": {"cpu_threads": job["threads"]},
        **job.get("config", {}),
    })  # fmt: skip


def replay(job: dict[str, Any]) -> dict[str, Any]:
    """Learn from recorded rollouts again and again."""
    recorded = json.loads(Path(job["rollouts"]).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.jsonl"
        table.write_text(
            "".join(json.dumps({"prompt": f"t{i + 9}", "answer": "0"}) + "\n" for i in range(256)), "utf-8"
        )
        tokens = {"max_prompt_tokens": 64, "max_completion_tokens": recorded["longest"]}
        task = {"type": "dataset", "path": str(table), "chat_template": False}
        settings = config(job, len(recorded["prompts"]), recorded["samples"], tokens, task)
        trainer = built(settings, Path(folder))
        try:
            return learn(trainer, job, completions(recorded, trainer.policy))
        finally:
            trainer.close()


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Sample, grade and learn: the loop as it is, but for a reward of its own, graded in this process."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.jsonl"
        rows = [*job["prompts"], "What is left over?"]  # one is held out
        table.write_text("".join(json.dumps({"prompt": prompt, "answer": "0"}) + "\n" for prompt in rows), "utf-8")
        tokens = {"max_prompt_tokens": 256, "max_completion_tokens": job["longest"]}
        task = {"type": "dataset", "path": str(table), "held_out_rows": 1}
        settings = config(job, job["trl"]["completions"] // job["samples"], job["samples"], tokens, task)
        trainer = built(settings, Path(folder))
        trainer.collector.pool = Grader()
        probe.forget_peak()
        loaded, cpu = probe.resident(), []
        began = time.process_time()
        report = trainer._report

        def watched(*arguments: Any) -> None:
            report(*arguments)
            cpu.append(time.process_time())

        trainer._report = watched
        try:
            ended = trainer.run()
        finally:
            trainer.close()
        assert ended[0] == "finished", ended
        found = told(Path(folder))
    after = slice(job["warmup"], None)
    spent = [end - start for start, end in pairwise([began, *cpu])]
    return {
        **{name: values[after] for name, values in found.items()}, "cpu": spent[after],
        "loaded_bytes": loaded, "peak_bytes": probe.peak(), "versions": versions(),
    }  # fmt: skip


class Grader:
    """Stands for the pool of grading processes."""

    def score(self, rows: Any, texts: list[str]) -> list[Any]:
        from trainer.rewards.scoring import Scored

        return [Scored(value, {"task": value}) for value in map(variety, texts)]


def told(folder: Path) -> dict[str, list[Any]]:
    """Return what the run's own metrics say of each step."""
    lines = map(json.loads, RunFolder(folder).events.read_text("utf-8").splitlines())
    steps: dict[int, dict[str, float]] = {}
    for event in lines:
        if event["type"] == "metrics":
            steps.setdefault(event["step"], {}).update(event["values"])
    told = [values for _, values in sorted(steps.items()) if "time/step" in values]
    split = [{name[5:]: v for name, v in values.items() if name.startswith("time/")} for values in told]
    totals = [0.0, *(values["tokens/total"] for values in told)]
    return {
        "seconds": [values["time/step"] for values in told], "sampled": [values["time/sample"] for values in told],
        "tokens": [end - start for start, end in pairwise(totals)], "split": split,
        "entropy": [values["entropy/mean"] for values in told],
    }  # fmt: skip


def built(settings: RunConfig, folder: Path) -> Any:
    """Return a Trainer as `python -m trainer` builds it."""
    prepare_environment(settings)
    import torch

    torch.set_num_threads(settings.resources.cpu_threads)
    from trainer.distributed import World
    from trainer.loop import Trainer
    from trainer.stream import Stream

    run = RunFolder(folder)
    run.config.write_text(settings.model_dump_json(), "utf-8")
    return Trainer(run, settings, 1, Stream(run, 1), World(cpu=not settings.resources.gpus))


def completions(recorded: dict[str, Any], policy: Any) -> list[Any]:
    """Return recorded rollouts as graded completions, with what sampling would have said of their tokens."""
    from trainer.completion import Completion
    from trainer.policy import Trajectory
    from trainer.rewards.scoring import Scored
    from trainer.tasks import Row

    samples, longest = recorded["samples"], recorded["longest"]
    prompts = [tuple(prompt) for prompt in recorded["prompts"] for _ in range(samples)]
    tokens = [Trajectory(*pair) for pair in zip(prompts, map(tuple, recorded["completions"]), strict=True)]
    lengths = [len(one.completion) for one in tokens]
    said = policy.score(tokens, 1.0)
    logprob, entropy = (said[name].split(lengths) for name in ("logprob", "entropy"))
    return [
        Completion(
            index=index, group=index // samples, sample=index % samples, auxiliary=False, row=Row("", "", ""),
            tokens=tokens[index], engine_logprob=logprob[index].tolist(), engine_entropy=entropy[index].tolist(),
            finish_reason="length" if lengths[index] == longest else "stop", text="", offsets=[], scored=Scored(reward),
        )
        for index, reward in enumerate(recorded["rewards"])
    ]  # fmt: skip


def learn(trainer: Any, job: dict[str, Any], rollouts: list[Any]) -> dict[str, Any]:
    """Time the updater on the same completions, as the loop calls it."""
    keep_gradients(trainer, job.get("gradients"))
    sampled = trainer.supply.old_logprobs.choice == "engine"
    probe.trim()
    probe.forget_peak()
    found: dict[str, Any] = {"loaded_bytes": probe.resident(), "seconds": [], "cpu": [], "split": []}
    losses, entropy = [], []
    for step in range(1, job["warmup"] + job["steps"] + 1):
        settings = trainer.steering.step(step)
        settings.vocabulary = trainer.policy.vocabulary
        times: dict[str, float] = {}
        began = time.perf_counter(), time.process_time()
        update = trainer.updater.update(rollouts, settings, 1, 1.0, times, sampled=sampled)
        seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        assert not update.problems, update.problems
        losses.append(update.metrics["loss"][0])
        entropy.append(float(update.batch.entropy.mean()))
        if step > job["warmup"]:
            found["seconds"].append(seconds)
            found["cpu"].append(cpu)
            found["split"].append(times)
    return {**found, "losses": losses, "entropy": entropy, "peak_bytes": probe.peak(), "versions": versions()}


def keep_gradients(trainer: Any, path: str | None) -> None:
    """Save the gradients of the first optimiser step, before they are clipped."""
    if path is None:
        return
    import torch

    step, seen = trainer.optimiser.step, []

    def watched(number: int) -> Any:
        if not seen:
            seen.append(number)
            torch.save({name: p.grad.clone() for name, p in trainer.policy.lm.named_parameters()}, path)
        return step(number)

    trainer.optimiser.step = watched


def versions() -> dict[str, str]:
    from trainer.surroundings import versions as installed

    return installed()


if __name__ == "__main__":
    given = probe.job()
    probe.answer(given, {"replay": replay, "step": step}[given["mode"]](given))
