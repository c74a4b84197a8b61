"""The run folder's language: event lines, live frames, control and exit files. Pydantic only.

events.jsonl holds one event a line, `seq` strictly increasing per run over all attempts. live.bin holds frames of
rollouts being generated; it is truncated at the start of each step and may lose data without harm.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class EventBase(BaseModel):
    """What every event carries; `time` is Unix seconds, `step` the optimiser step it belongs to."""

    model_config = ConfigDict(extra="forbid")

    seq: int = Field(ge=1)
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    time: float


class KnobSpec(BaseModel):
    """A steerable number as the page shows it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    help: str = ""
    unit: str = ""


class Choice(BaseModel):
    """One way of computing that was chosen at the start of an attempt, and one sentence of why."""

    choice: str
    why: str


class Started(EventBase):
    """An attempt began; points of step > resume_step from earlier attempts are superseded."""

    type: Literal["started"] = "started"
    resume_step: int = 0
    total_steps: int
    pid: int
    device: str
    parameters: int
    vocabulary: int
    knobs: list[KnobSpec] = []
    versions: dict[str, str] = {}
    plan: dict[str, Choice] = {}  # how the attempt computes, by what was chosen
    memory: dict[str, dict[str, int]] = {}  # predicted bytes by phase and part; empty where they cannot be told


class Metrics(EventBase):
    """Numbers of one step, named `section/name`; see docs/events.md for the list. Non-finite values are left out."""

    type: Literal["metrics"] = "metrics"
    values: dict[str, float]


class Rollouts(EventBase):
    """A rollout file is whole; path relative to the run folder."""

    type: Literal["rollouts"] = "rollouts"
    path: str
    completions: int
    tokens: int
    bytes: int


class CheckpointWritten(EventBase):
    """A checkpoint's manifest exists; path relative to the run folder."""

    type: Literal["checkpoint"] = "checkpoint"
    path: str
    bytes: int
    final: bool = False


class CheckpointRemoved(EventBase):
    """An old checkpoint was pruned."""

    type: Literal["checkpoint_removed"] = "checkpoint_removed"
    path: str


class Evaluation(EventBase):
    """Held-out measurements, named avg@k, pass@k, maj@k, greedy, distinct@k; shares in [0, 1]."""

    type: Literal["evaluation"] = "evaluation"
    values: dict[str, float]
    prompts: int
    samples: int
    seconds: float = 0.0


class KnobChanged(EventBase):
    """A control change that took effect at this step."""

    type: Literal["knob"] = "knob"
    name: str
    old: float
    new: float
    source: Literal["user", "controller"] = "user"
    control_seq: int = 0


class Alert(EventBase):
    """Something a person should look at."""

    type: Literal["alert"] = "alert"
    code: str
    message: str


class Warned(EventBase):
    """Something odd that the run survived."""

    type: Literal["warning"] = "warning"
    code: str
    message: str


class Finished(EventBase):
    """The attempt ended well: all steps done, or stopped on request with a checkpoint."""

    type: Literal["finished"] = "finished"
    status: Literal["finished", "stopped", "interrupted"]
    reason: str = ""


class Failed(EventBase):
    """The attempt ended badly; `reason` is one sentence with the fix, `field` the config field concerned."""

    type: Literal["failed"] = "failed"
    reason: str
    field: str = ""


Event = Annotated[
    Started
    | Metrics
    | Rollouts
    | CheckpointWritten
    | CheckpointRemoved
    | Evaluation
    | KnobChanged
    | Alert
    | Warned
    | Finished
    | Failed,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Any] = TypeAdapter(Event)


class Control(BaseModel):
    """control.json: the latest steering request, replaced atomically by the supervisor, read before every step.

    `watch` is read while sampling, too: the groups of the step that viewers want to see growing.
    """

    seq: int = 0
    knobs: dict[str, float] = {}
    stop: bool = False  # finish the step, write a checkpoint, exit with status "stopped"
    watch: list[int] = []


class Exit(BaseModel):
    """exit.json, written last; its absence after the process is gone means "interrupted"."""

    status: Literal["finished", "stopped", "failed", "interrupted"]
    reason: str = ""
    field: str = ""
    code: int = 0
    attempt: int = 1


# Live frames -------------------------------------------------------------------------------------------------------

FRAME = struct.Struct("<HBBIIIIII")  # magic, version, kind, attempt, step, rollout, first token, count, payload bytes
FRAME_MAGIC = 0x1E57
FRAME_VERSION = 1
FRAME_MAX_PAYLOAD = 1 << 20
RANK_STRIDE = 1 << 24  # completions that one process may number
LIVE_PROCESSES = 1 << 8  # that write frames; their numbers fit into 32 bits
KIND_PROMPT, KIND_TOKENS, KIND_PROGRESS, KIND_END, KIND_GROUPS, KIND_BOUNDED = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Frame:
    """One live frame; `rollout` numbers the completions of a step as the strategy does, from RANK_STRIDE × rank on.

    TOKENS is, for `count` tokens from `first` on: u32 ids, u16 byte lengths, f16 entropies (nats), f16 log-probs, then
    the UTF-8 text whose bytes the lengths divide (a token inside a character has length 0). BOUNDED is the same with
    f16 lower and f16 upper bounds of the entropy before the text. The other payloads are UTF-8 JSON:

    PROMPT {group, sample, prompt, picked, auxiliary?, parent?, fork_at?, prefix?, prefix_tokens?}: a completion that is
    watched; `picked` where it is because a viewer chose its group. PROGRESS {phase, done, total}. END {finish_reason,
    tail?}: `tail` is the text of bytes that no token completed. GROUPS {groups: [{group, prompt?, size?, done?}]}: the
    groups of the step, each frame adding to those before.
    """

    kind: int
    attempt: int
    step: int
    rollout: int = 0
    first: int = 0
    count: int = 0
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return header and payload."""
        head = FRAME.pack(
            FRAME_MAGIC,
            FRAME_VERSION,
            self.kind,
            self.attempt,
            self.step,
            self.rollout,
            self.first,
            self.count,
            len(self.payload),
        )
        return head + self.payload


def progress(attempt: int, step: int, phase: str, done: int, total: int) -> Frame:
    """Return the frame that says how far a phase has come."""
    return Frame(
        KIND_PROGRESS, attempt, step, payload=json.dumps({"phase": phase, "done": done, "total": total}).encode()
    )


def frames(data: bytes) -> Iterator[tuple[Frame, int]]:
    """Yield (frame, offset behind it) for every whole frame in `data`; stop at the first incomplete or foreign byte."""
    at = 0
    while at + FRAME.size <= len(data):
        magic, version, kind, attempt, step, rollout, first, count, size = FRAME.unpack_from(data, at)
        end = at + FRAME.size + size
        if magic != FRAME_MAGIC or version != FRAME_VERSION or size > FRAME_MAX_PAYLOAD or end > len(data):
            return
        yield Frame(kind, attempt, step, rollout, first, count, data[at + FRAME.size : end]), end
        at = end


# The run folder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """The names inside a run folder, in one place."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def control(self) -> Path:
        return self.path / "control.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def live(self) -> Path:
        return self.path / "live.bin"

    def live_of(self, rank: int) -> Path:
        """Return where a process writes its live frames: `live` for the first."""
        return self.path / f"live-{rank}.bin" if rank else self.live

    @property
    def log(self) -> Path:
        return self.path / "trainer.log"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def server(self) -> Path:
        return self.path / "server"

    @property
    def server_log(self) -> Path:
        return self.path / "server.log"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def rollout_file(self, step: int) -> Path:
        return self.rollouts / f"step-{step:08d}.parquet"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"
