"""A plausible run without a trainer, for tests of pages and benches: rows, events, rollouts, checkpoints, log.

Numbers are made up but hang together: reward rises, entropy falls towards its target, the second attempt rewinds.
"""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VOCABULARY = 20
WORDS = [
    "So",
    " the",
    " sum",
    " of",
    " three",
    " numbers",
    " is",
    " 42",
    ".",
    " Wait",
    ",",
    " let",
    " me",
    " check",
    " again",
    "\n",
    " é",
    " 数",
    " therefore",
    " =",
    " 17",
    " +",
]
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> <b>bold</b> &amp; "
    "left\u202eright-to-left\u202c zero\u200bwidth \x07bell \x1b[31mred\x1b[0m tab\there\nnew line 👩‍👩‍👧 数字"
)
CONTEXT = 16  # flag of tokens that do not count (trainer/recorder.py)
LISTS = {
    "token_ids": pa.uint32(),
    "byte_offsets": pa.uint32(),
    "entropy": pa.float16(),
    "logprob": pa.float32(),
    "engine_logprob": pa.float32(),
    "weight": pa.float16(),
    "entropy_weight": pa.float16(),
    "flags": pa.uint8(),
}


def char_tokens(text: str) -> list[str]:
    """Return one token for each character."""
    return list(text)


def word_tokens(rng: random.Random, count: int) -> list[str]:
    """Return `count` tokens as a BPE tokenizer would cut them."""
    return [rng.choice(WORDS) for _ in range(count)]


def completion_row(
    rng: random.Random, group: int, sample: int, prompt: str, tokens: list[str], reward: float, **changes: Any
) -> dict[str, Any]:
    """Return one row of a rollout file; entropy is mostly near 0 with forks here and there."""
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token.encode())
    entropy = [rng.uniform(0.4, 3.2) if rng.random() < 0.2 else rng.expovariate(12) for _ in tokens]
    logprob = [-rng.expovariate(1 / max(0.02, value)) for value in entropy]
    advantage = reward * 2 - 1
    row = {
        "group": group,
        "sample": sample,
        "row_key": f"row-{group}",
        "prompt": prompt,
        "completion": "".join(tokens),
        "reward": reward,
        "reward_parts": json.dumps({"task": reward, "format": 1.0}),
        "right": reward > 0.5,
        "advantage": advantage,
        "finish_reason": "stop",
        "branch_parent": None,
        "branch_token": None,
        "token_ids": [sum(token.encode()) % VOCABULARY for token in tokens],
        "byte_offsets": offsets,
        "entropy": entropy,
        "logprob": logprob,
        "engine_logprob": logprob,
        "weight": [advantage if rng.random() > 0.1 else 0.0 for _ in tokens],
        "entropy_weight": [0.01] * len(tokens),
        "flags": [1 if rng.random() < 0.05 else 0 for _ in tokens],
        "segments": [{"kind": "model", "first": 0, "count": len(tokens)}],
        "learns": True,
        "version": 0,
        "template": None,
    }
    return row | changes


def forked_row(
    rng: random.Random, rows: list[dict[str, Any]], parent: int, at: int, tokens: list[str], reward: float
) -> dict[str, Any]:
    """Return a row that goes on with `tokens` behind the first `at` tokens of another; its beginning is context."""
    old = rows[parent]
    given = old["completion"].encode()[: old["byte_offsets"][at]].decode()
    sample = max(row["sample"] for row in rows if row["group"] == old["group"]) + 1
    row = completion_row(rng, old["group"], sample, old["prompt"], tokens, reward)
    for name, before in [(name, old[name][:at]) for name in LISTS]:
        row[name] = [*before, *row[name]]
    row["byte_offsets"][at:] = [offset + len(given.encode()) for offset in row["byte_offsets"][at:]]
    for name, value in {"weight": 0.0, "entropy_weight": 0.0, "flags": CONTEXT}.items():
        row[name][:at] = [value] * at
    kinds = [{"kind": "prefix", "first": 0, "count": at}, {"kind": "model", "first": at, "count": len(tokens)}]
    return row | {
        "completion": given + row["completion"], "branch_parent": parent, "branch_token": at, "segments": kinds
    }  # fmt: skip


def forks(rng: random.Random, groups: int = 3, roots: int = 3, each: int = 2, tokens: int = 60) -> list[dict[str, Any]]:
    """Return the rows of one step of a branching run: roots, forks off them, and a fork off a fork."""
    rows: list[dict[str, Any]] = []
    for group in range(groups):
        first, prompt = len(rows), f"Problem {group}: add three numbers."
        for sample in range(roots):
            rows.append(completion_row(rng, group, sample, prompt, word_tokens(rng, tokens), float(rng.random() < 0.4)))
        for parent in range(first, first + roots):
            for _ in range(each):
                at = rng.randint(tokens // 6, tokens - 10)
                more = word_tokens(rng, tokens - at - rng.randint(0, 8))
                rows.append(forked_row(rng, rows, parent, at, more, float(rng.random() < 0.5)))
        rows.append(forked_row(rng, rows, first + roots, tokens - 10, word_tokens(rng, 10), 1.0))
    return rows


def write_rollouts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as the trainer's recorder does."""
    schema = pa.schema(
        [
            ("group", pa.uint32()),
            ("sample", pa.uint32()),
            ("row_key", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("reward", pa.float32()),
            ("reward_parts", pa.string()),
            ("right", pa.bool_()),
            ("advantage", pa.float32()),
            ("finish_reason", pa.string()),
            ("branch_parent", pa.uint32()),
            ("branch_token", pa.uint32()),
            (
                "segments",
                pa.list_(pa.struct([("kind", pa.string()), ("first", pa.uint32()), ("count", pa.uint32())])),
            ),
            ("learns", pa.bool_()),
            ("version", pa.uint32()),
            ("template", pa.string()),
            *((name, pa.list_(kind)) for name, kind in LISTS.items()),
        ]
    )
    columns = {}
    for field in schema:
        values = [row[field.name] for row in rows]
        if field.type == pa.list_(pa.float16()):
            columns[field.name] = pa.array(values, pa.list_(pa.float32())).cast(field.type)
        else:
            columns[field.name] = pa.array(values, field.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def sums(rng: random.Random, step: int, groups: int = 4, samples: int = 6) -> list[dict[str, Any]]:
    """Return the rows of one step of Split-the-sum with character tokens."""
    rows = []
    for group in range(groups):
        total = rng.randint(20, 99)
        for sample in range(samples):
            left = rng.randint(1, total - 1)
            right = group == 1 or rng.random() < 0.3 + step / 120
            answer = f"{left}+{total - left}" if right else f"{left}+{total - left + 1}"
            rows.append(completion_row(rng, group, sample, f"{total}=", char_tokens(answer + ";"), float(right)))
    return rows


def essays(rng: random.Random, groups: int, samples: int, tokens: int) -> list[dict[str, Any]]:
    """Return the rows of one step with long word-like tokens: 64 completions of 4,096 make the heatmap's bench."""
    return [
        completion_row(
            rng,
            group,
            sample,
            f"Problem {group}: add three numbers.",
            word_tokens(rng, tokens),
            float(rng.random() < 0.5),
        )
        for group in range(groups)
        for sample in range(samples)
    ]


class Fabricator:
    """Writes one run; `events` grows with a running seq."""

    def __init__(self, run: Any, seed: int, every: int = 20) -> None:
        self.run, self.rng, self.every = run, random.Random(seed), every
        self.events: list[Any] = []
        self.clock = datetime.now(UTC) - timedelta(hours=2)

    def emit(self, kind: str, attempt: int, step: int, **data: Any) -> None:
        from webapp.runs.models import Event

        self.clock += timedelta(seconds=1)
        self.events.append(
            Event(
                run=self.run,
                seq=len(self.events) + 1,
                attempt=attempt,
                step=step,
                type=kind,
                time=self.clock,
                data=data,
            )
        )

    def metrics(self, step: int, attempt: int) -> dict[str, float]:
        share, noise = 1 - math.exp(-step / 25), self.rng.gauss(0, 0.02)
        entropy = 0.4 + 1.1 * math.exp(-step / 18) + noise + (0.08 if attempt > 1 else 0)
        return {
            "reward/mean": 0.15 + 0.7 * share + noise,
            "reward/std": 0.4,
            "reward/task": 0.15 + 0.7 * share + noise,
            "reward/zero_variance": share / 2,
            "reward/distinct": 5 - 2 * share + noise,
            "entropy/mean": entropy,
            "entropy/p10": entropy * 0.15,
            "entropy/p50": entropy * 0.7,
            "entropy/p90": entropy * 2.1,
            "entropy/target_low": 0.5,
            "entropy/target_high": 0.5,
            "entropy/sampled": entropy + noise,
            "length/mean": 9 + 2 * share + noise * 4,
            "length/max": 16.0,
            "length/truncated": 0.02,
            "clip/share": 0.02 + abs(noise) / 4,
            "grad/norm": 0.6 + abs(noise) * 8,
            "kl/old": abs(noise) / 20,
            "advantage/std": 0.9,
            "objective/loss": noise,
            "time/sample": 0.5 + abs(noise),
            "time/reward": 0.05,
            "time/score": 0.2,
            "time/update": 0.35,
            "time/step": 1.15,
        }

    def step(self, step: int, attempt: int, rows: list[dict[str, Any]] | None = None) -> None:
        """One training step: its metrics and its rollout file."""
        self.emit("metrics", attempt, step, values=self.metrics(step, attempt))
        rows = sums(self.rng, step) if rows is None else rows
        path = self.run.folder.rollout_file(step)
        write_rollouts(path, rows)
        tokens = sum(len(row["token_ids"]) for row in rows)
        self.emit(
            "rollouts",
            attempt,
            step,
            path=f"rollouts/{path.name}",
            completions=len(rows),
            tokens=tokens,
            bytes=path.stat().st_size,
        )

    def attempt(self, number: int, first: int, last: int) -> None:
        knobs = [
            {
                "name": "entropy_target",
                "value": 0.5,
                "low": 0.0,
                "high": 20.0,
                "help": "Entropy to hold.",
                "unit": "nats",
            }
        ]
        self.emit(
            "started",
            number,
            first - 1,
            resume_step=first - 1,
            total_steps=100,
            pid=1,
            device="cpu",
            parameters=81_920,
            vocabulary=VOCABULARY,
            knobs=knobs,
        )
        for step in range(first, last + 1):
            self.step(step, number)
            if step % self.every == 0:
                share = 1 - math.exp(-step / 25)
                values = {
                    "avg@16": 0.1 + 0.6 * share,
                    "pass@16": 0.95 - 0.2 * share,
                    "maj@16": 0.2 + 0.5 * share,
                    "greedy": 0.2 + 0.55 * share,
                    "distinct@16": 4 - share,
                }
                self.emit("evaluation", number, step, values=values, prompts=64, samples=16, seconds=2.5)
                self.checkpoint(step, number)

    def checkpoint(self, step: int, attempt: int) -> None:
        from webapp.runs.models import Checkpoint

        folder = self.run.folder.checkpoint(step)
        (folder / "trainer_state").mkdir(parents=True, exist_ok=True)
        files = {
            "model.safetensors": self.rng.randbytes(20_000),
            "config.json": b"{}",
            "manifest.json": b"{}",
            "trainer_state/optimiser.pt": b"secret",
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        size = sum(len(content) for content in files.values())
        Checkpoint.objects.update_or_create(
            run=self.run,
            step=step,
            defaults={
                "attempt": attempt,
                "path": f"checkpoints/{folder.name}",
                "bytes": size,
                "metrics": {"reward/mean": 0.5, "entropy/mean": 0.6, "evaluation/avg@16": 0.4},
            },
        )
        self.emit("checkpoint", attempt, step, path=f"checkpoints/{folder.name}", bytes=size, final=False)


def fabricate_run(
    owner: Any,
    *,
    steps: int = 45,
    rewound: bool = True,
    state: str = "running",
    seed: int = 1,
    every: int = 20,
    **fields: Any,
) -> Any:
    """Create a run with everything a page shows; `rewound`: resumed once from step 20."""
    from trainer.config import RunConfig
    from webapp.runs.models import Event, Request, Run

    config = RunConfig(name="split sum at 0.5 nats", seed=7).model_dump(mode="json")
    defaults = {
        "name": config["name"],
        "config": config,
        "objective": "skywork_adaptive",
        "task": "countdown",
        "model": config["model"]["source"],
        "tags": ["demo", "seed-7"],
        "state": state,
        "step": steps,
        "total_steps": 100,
        "phase": "generate",
        "phase_done": 12,
        "phase_total": 64,
        "attempt": 2 if rewound else 1,
        "lease_worker": "worker@here",
        "disk_bytes": 1_234_567,
    }
    run = Run.objects.create(owner=owner, **defaults | fields)
    made = Fabricator(run, seed, every)
    if rewound:
        made.attempt(1, 1, 30)
        made.emit("finished", 1, 30, status="interrupted", reason="the worker's machine went away")
    made.attempt(run.attempt, 21 if rewound else 1, steps)
    made.emit(
        "knob", run.attempt, min(35, steps), name="entropy_target", old=0.4, new=0.5, source="user", control_seq=1
    )
    made.emit(
        "alert",
        run.attempt,
        steps,
        code="zero_variance",
        message="Half of the prompts teach nothing: all completions earn the same.",
    )
    Event.objects.bulk_create(made.events)
    Request.objects.create(run=run, user=owner, kind="launch")
    Request.objects.create(
        run=run, user=owner, kind="steer", step=34, data={"knobs": {"entropy_target": 0.5}, "control_seq": 1}
    )
    newest = next(event for event in reversed(made.events) if event.type == "metrics")
    run.summary, run.last_seq, run.started_at = (
        newest.data["values"],
        made.events[-1].seq,
        newest.time - timedelta(minutes=3),
    )
    run.control_seq, run.control_knobs, run.heartbeat_at = 1, {"entropy_target": 0.5}, datetime.now(UTC)
    run.knobs = {
        "entropy_target": {"value": 0.5, "low": 0.0, "high": 20.0, "help": "Entropy to hold.", "unit": "nats"},
        "temperature": {
            "value": 1.0,
            "low": 0.05,
            "high": 10.0,
            "help": "Divides the logits when sampling and scoring.",
            "unit": "",
        },
        "entropy_coefficient": {
            "value": 0.0124,
            "low": 0.0,
            "high": 1.0,
            "help": "Weight of the entropy bonus.",
            "unit": "",
        },
    }
    run.save()
    run.folder.log.write_text(
        "loading model\n\x1b[32mstep 1\x1b[0m reward 0.15\nHF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz0123\n"
    )
    return run
