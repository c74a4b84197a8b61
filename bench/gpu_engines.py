"""The rollout engines on a GPU, part by part: `python bench/gpu_engines.py agreement|runs|server [--device cpu]`.

agreement  vLLM beside the trainer on the same weights, in each number format, with CUDA graphs and sleep: the probe
           after every way for weights to arrive, log-probs and entropies token by token, tokens a second, memory
runs       short runs under hf and under vllm, as a worker starts them
server     runs a step ahead of a server, weights through a folder and from memory to memory: over NCCL where there are
           two GPUs; with one, the server has it and the trainer runs on the CPU

Each part prints tables for docs/benchmarks.md, says what it left out, and ends with status 1 where a figure is beyond
its limit. `--device cpu` goes the same way with vLLM's CPU build and small sizes: no figures, but every line has run.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from _shared import ROOT, machine, table

from trainer.config import ModelConfig, RunConfig, load
from trainer.errors import ConfigError
from trainer.events import RunFolder
from trainer.mismatch import LIMITS as MISMATCH
from trainer.mismatch import mismatch
from trainer.models import resolve
from trainer.policy import Policy, Trajectory
from trainer.rollout import Engine, Generation, GenRequest, SamplerSpec
from trainer.rollout.hf import HfEngine
from trainer.rollout.sampling import seed_of
from trainer.rollout.settings import SamplingConfig, VllmConfig
from trainer.sync import LIMITS as PROBE

TINY, SMOLLM2 = "builtin:countdown-tiny-llama", "builtin:smollm2-135m-instruct"
SHARE = 0.3  # of the GPU's memory for vLLM
GIB = 1 << 30
Row = list[str]


@dataclass(frozen=True)
class Sizes:
    """How much is done: enough to measure on a GPU, or to have run on a CPU."""

    prompts: int = 32
    samples: int = 16
    tokens: int = 256
    rounds: int = 3
    steps: int = 20
    formats: tuple[tuple[str, str], ...] = ((TINY, "float32"), (TINY, "bfloat16"), (SMOLLM2, "bfloat16"))


SMALL = Sizes(prompts=2, samples=4, tokens=12, rounds=1, steps=2, formats=((TINY, "float32"),))


@dataclass
class Findings:
    """What a part has to say: rows of its tables, what it left out, what is wrong."""

    tables: dict[str, tuple[Row, list[Row]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self, title: str, head: Sequence[str], *cells: object) -> None:
        """Add a row to the table of this title."""
        self.tables.setdefault(title, (list(head), []))[1].append([str(cell) for cell in cells])

    def limit(self, what: str, figure: float, most: float) -> None:
        """Note a figure beyond its limit; NaN is."""
        if not figure <= most:
            self.wrong.append(f"{what} is {figure:.3g}, more than {most:.3g}")

    def show(self) -> None:
        """Print everything."""
        for title, (head, rows) in self.tables.items():
            print(f"\n{title}\n\n{table(head, rows)}", flush=True)
        for sentence in self.left_out:
            print(f"\nLeft out: {sentence}.")
        for sentence in self.wrong:
            print(f"\nWRONG: {sentence}.")


# -- agreement --------------------------------------------------------------------------------------------------------


def agreement(device: torch.device, sizes: Sizes) -> Findings:
    """Hold vLLM to the trainer for each model and number format."""
    found = Findings()
    if find_spec("vllm") is None:
        found.left_out.append("vLLM is not installed, so nothing is held against it")
        return found
    for source, dtype in sizes.formats:
        try:
            path = resolve(source).path
        except ConfigError as error:
            found.left_out.append(f"{source} ({error})")
            continue
        policy = Policy(path, ModelConfig(source=source, dtype=dtype), device)
        policy.budget = 65536 if device.type == "cuda" else 4096
        name = f"{source.removeprefix('builtin:')}, {dtype}"
        try:
            _agree(found, name, policy, sizes)
        except Exception as error:  # whatever it is: the figures so far and the other formats are worth having
            traceback.print_exc()
            found.wrong.append(f"{name}: {type(error).__name__}: {error}")
        del policy
        gc.collect()
    return found


def _agree(found: Findings, name: str, policy: Policy, sizes: Sizes) -> None:
    from trainer.rollout.vllm.engine import VllmEngine

    memory, asked = [_used(policy.device)], requests(policy, sizes)
    engine, started = _timed(lambda: VllmEngine(policy, sampling(sizes)))
    try:
        if not engine.caps.exact_entropy:
            found.wrong.append(f"{name}: the sampler tap failed its self-test")
        _, synced = _timed(lambda: engine.sync_weights(0))
        memory.append(_used(policy.device))
        _compare(found, name, "first", policy, engine, asked)
        rows = [("hf", HfEngine(policy)), ("vllm", engine)]
        speeds = [_speed(one, asked, sizes.rounds) for _, one in rows]
        head = ("model", "completions", "hf, tok/s", "vllm, tok/s", "vllm / hf", "start, s", "sync, s")
        size = f"{len(asked)} × ≤ {sizes.tokens}"
        found.row(
            "Tokens a second", head, name, size, *(f"{speed:,.0f}" for speed in speeds),
            f"{speeds[1] / speeds[0]:.1f}", f"{started:.0f}", f"{synced:.2f}",
        )  # fmt: skip
        move(policy)
        engine.sync_weights(1)
        _compare(found, name, "after an update", policy, engine, asked)
        engine.rest()
        memory.append(_used(policy.device))
        _, woken = _timed(lambda: engine.sync_weights(2))
        memory.append(_used(policy.device))
        _compare(found, name, "after sleeping", policy, engine, asked)
        engine.rest()
        engine.close()  # asleep, as a run's last step leaves it
        memory.append(_used(policy.device))
        engine.sync_weights(3)  # a process can have one pool that sleeps: this takes that nothing of the first is left
        _compare(found, name, "after a restart", policy, engine, asked)
    finally:
        engine.close()
    head = ("model", "before", "awake", "asleep", "awake again", "closed", "waking, s")
    found.row("Memory in use, GiB", head, name, *(f"{size / GIB:.2f}" for size in memory), f"{woken:.2f}")
    if engine.driver.sleeps:
        found.limit(f"{name}: memory in use asleep, GiB", memory[2] / GIB, (memory[0] + memory[1]) / 2 / GIB)


def _compare(
    found: Findings, name: str, when: str, policy: Policy, engine: Engine, asked: Sequence[GenRequest]
) -> None:
    """Add a row: what the engine says of the tokens it drew, beside what the trainer says of them."""
    dtype = policy.config.dtype
    probe = engine.probe()
    got = engine.run(asked)
    want = policy.score([Trajectory(one.prompt_ids, tuple(two.ids)) for one, two in zip(asked, got, strict=True)], 1.0)
    logprob, entropy = (_joined(got, what) for what in ("logprob", "entropy"))
    number = torch.repeat_interleave(torch.arange(len(got)), torch.tensor([len(one.ids) for one in got]))
    apart, figures = (entropy - want["entropy"]).abs(), mismatch(logprob, want["logprob"], number)
    head = (
        "model", "weights", "probe", "log-prob off by, mean", "probability, most", "entropy off by, mean", "most", "k3",
        "effective sample",
    )  # fmt: skip
    found.row(
        "Engine and trainer on the same tokens, nats", head, name, when, f"{probe:.2g}",
        f"{figures['mismatch/mean_abs']:.2g}", f"{figures['mismatch/max_prob']:.2g}", f"{apart.mean():.2g}",
        f"{apart.max():.2g}", f"{figures['mismatch/k3']:.2g}", f"{figures['mismatch/ess']:.4f}",
    )  # fmt: skip
    found.limit(f"{name}, {when}: the probe", probe, PROBE[dtype])
    found.limit(f"{name}, {when}: the mean difference of log-probs", figures["mismatch/mean_abs"], MISMATCH[dtype])


def _joined(got: Sequence[Generation], what: str) -> torch.Tensor:
    return torch.tensor([value for one in got for value in getattr(one, what)])


def sampling(sizes: Sizes) -> SamplingConfig:
    """Return settings with room for every request at once."""
    vllm = VllmConfig(memory_share=SHARE, cache_gigabytes=0.1, max_sequences=sizes.prompts * sizes.samples)
    return SamplingConfig(
        engine="vllm", max_prompt_tokens=32, max_completion_tokens=max(sizes.tokens, 17), vllm=vllm
    )  # fmt: skip


def requests(policy: Policy, sizes: Sizes) -> list[GenRequest]:
    """Return requests of random prompts and of lengths as ragged as in training; no token ends a completion early."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    dice, longest = random.Random(seed), min(sizes.tokens, (policy.context or sizes.tokens + 32) - 32)
    prompts = [
        tuple(dice.choices(range(2, min(policy.vocabulary, 40_000)), k=dice.randint(6, 12)))
        for _ in range(sizes.prompts)
    ]
    return [
        GenRequest(
            index, index // sizes.samples, index, prompts[index // sizes.samples], seed_of(seed, index),
            dice.choice((longest // 4, longest // 2, longest)), SamplerSpec(),
        )
        for index in range(sizes.prompts * sizes.samples)
    ]  # fmt: skip


def move(policy: Policy) -> None:
    """Change every weight a little, as an update does."""
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(torch.randn_like(parameter) * parameter.abs().mean() * 0.03)


def _speed(engine: Engine, asked: Sequence[GenRequest], rounds: int) -> float:
    """Return tokens per second, the median of rounds behind a first one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        got, took = _timed(lambda: engine.run(asked))
        seconds.append(took / max(1, sum(len(one.ids) for one in got)))
    return 1 / median(seconds[1:])


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def _used(device: torch.device) -> int:
    """Return bytes in use: of the GPU by all, of the machine by this process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# -- runs -------------------------------------------------------------------------------------------------------------


def runs(device: torch.device, sizes: Sizes) -> Findings:
    """Train the same under each engine."""
    found = Findings()
    for engine in ("hf", "vllm"):
        if engine == "vllm" and find_spec("vllm") is None:
            found.left_out.append("the run under vllm: vLLM is not installed")
            continue
        _run(found, f"{engine}, float32", run_config(device, sizes, engine))
        if device.type == "cuda":
            _run(found, f"{engine}, bfloat16", run_config(device, sizes, engine, dtype="bfloat16"))
    return found


def server(device: torch.device, sizes: Sizes) -> Findings:
    """Train a step ahead of a server, its weights through a folder, then from memory to memory."""
    found, gpus = Findings(), torch.cuda.device_count() if device.type == "cuda" else 0
    engine = "vllm" if find_spec("vllm") is not None else "hf"
    if engine == "hf":
        found.left_out.append("vLLM in the server: it is not installed")
    if gpus < 2:
        found.left_out.append("weights over NCCL: they take two GPUs, so trainer or server is on the CPU")
    for weights in ("folder", "broadcast"):
        wishes = {"enabled": True, "gpus": min(gpus, 1), "weights": weights}
        config = run_config(device, sizes, engine, gpus=int(gpus > 1), server=wishes, staleness=1)
        _run(found, f"{engine} in a server, weights by {weights}", config)
    return found


def run_config(
    device: torch.device,
    sizes: Sizes,
    engine: str,
    *,
    dtype: str = "float32",
    gpus: int | None = None,
    **sampling: Any,
) -> RunConfig:
    """Return a short run of Countdown, the trainer on so many GPUs; None is one where there is one."""
    return load(
        {
            "name": f"gpu-check, {engine}", "model": {"source": TINY, "dtype": dtype},
            "sampling": {
                "engine": engine, "prompts_per_step": sizes.prompts, "samples_per_prompt": sizes.samples,
                "max_completion_tokens": 12, "vllm": {"memory_share": SHARE, "cache_gigabytes": 0.1}, **sampling,
            },
            "objective": {"parts": [{"type": "ppo_clip", "correction": "token"}]},
            "optimiser": {"steps": sizes.steps, "learning_rate": 1.5e-4},
            "evaluation": {"every_steps": 0}, "checkpoint": {"every_steps": 0},
            "resources": {"gpus": int(device.type == "cuda") if gpus is None else gpus},
        }
    )  # fmt: skip


def _run(found: Findings, name: str, config: RunConfig) -> None:
    """Add a row: a run in a process of its own, as a supervisor starts it."""
    with tempfile.TemporaryDirectory() as home:
        folder = RunFolder(Path(home) / "run")
        folder.path.mkdir()
        folder.config.write_text(config.model_dump_json(), "utf-8")
        done, seconds = _timed(lambda: subprocess.run([sys.executable, "-m", "trainer", str(folder.path)], cwd=ROOT))
        if done.returncode:
            log = folder.server_log.read_text("utf-8")[-3000:] if folder.server_log.exists() else ""
            found.wrong.append(f"{name}: the run ended with status {done.returncode}\n{log}")
            return
        events = [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]
    values = [event["values"] for event in events if event["type"] == "metrics"]
    found.wrong += [f"{name}: {event['message']}" for event in events if event["type"] == "alert"]
    head = (
        "run", "reward, first → last", "tokens/s, median", "seconds, whole run", "probe, worst", "mismatch, mean",
        "sync, s",
    )  # fmt: skip
    rewards = list(_each(values, "reward/mean"))
    probes, apart, syncs = (list(_each(values, key)) for key in ("sync/probe", "mismatch/mean_abs", "time/sync"))
    found.row(
        "Short runs", head, name, f"{rewards[0]:.2f} → {rewards[-1]:.2f}",
        f"{median(_each(values, 'tokens/per_second')):,.0f}", f"{seconds:.0f}", f"{max(probes):.2g}" if probes else "–",
        f"{fmean(apart):.2g}" if apart else "–", f"{median(syncs):.2f}" if syncs else "–",
    )  # fmt: skip


def _each(values: Sequence[dict[str, float]], key: str) -> Iterator[float]:
    return (found[key] for found in values if key in found)


PARTS = {"agreement": agreement, "runs": runs, "server": server}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: nothing to do.")
        return 0
    print(machine(), flush=True)
    device = torch.device("cuda", 0) if chosen.device == "cuda" else torch.device("cpu")
    found = PARTS[chosen.part](device, Sizes() if chosen.device == "cuda" else SMALL)
    found.show()
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
