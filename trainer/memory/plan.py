"""What one process of a run will hold at its fullest, phase by phase and part by part; arithmetic on shapes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from trainer import budgets
from trainer.config import RunConfig
from trainer.memory.activations import WIDE, adapted, layer_bytes, passing_bytes, width_of
from trainer.memory.batch import Batch, processes
from trainer.model_files import ModelInfo
from trainer.rollout.vllm import forecast

LABELS = {
    "runtime": "Python and libraries",
    "weights": "Weights",
    "reference": "Reference model",
    "masters": "Float32 weights",
    "optimiser": "Optimiser state",
    "gradients": "Gradients",
    "activations": "Activations",
    "head": "Output layer",
    "cache": "Key-value cache",
    "engine": "vLLM's weights and cache",
    "copies": "Copies",
}
PHASES = {
    "load": "loading the model",
    "generate": "sampling",
    "score": "scoring",
    "update": "learning",
    "save": "writing a checkpoint",
}
CPU_RUNTIME = 530 << 20  # resident with torch 2.13 (CPU) and transformers 5 when the built-in tiny model has trained
CUDA_RUNTIME = 600 << 20  # a CUDA context with cuBLAS's workspaces
GPU_BYTES = 80 << 30  # taken for a GPU's memory where none is known
REFERENCE = 5  # whole [N, V] float32 arrays that the slow definition of the head holds with its gradients
DRAWN = 3  # [rows, V] float32 arrays while a token is drawn
MOMENTS = {"float32": 8, "8bit": 2.1}  # bytes a trained weight: AdamW's two, with the scales of their blocks
NEEDED = {
    "parameters": "safetensors headers",
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocabulary": "vocab_size",
}


class Phase(BaseModel):
    """What is held at once while one thing is done: bytes by part."""

    name: str
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def sorted(self) -> list[tuple[str, int]]:
        """Return the parts, largest first."""
        return sorted(self.parts.items(), key=lambda part: -part[1])


class MemoryPlan(BaseModel):
    """The phases of one process; on a GPU what counts is the GPU's memory."""

    device: Literal["cpu", "cuda"]
    processes: int
    phases: list[Phase]

    @property
    def peak(self) -> Phase:
        """Return the phase that takes most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak_bytes(self) -> int:
        return self.peak.bytes

    @property
    def seen_bytes(self) -> int:
        """Return what a run measures of its peak: on a GPU tensors only, without what its context takes."""
        return self.peak_bytes - (self.peak.parts.get("runtime", 0) if self.device == "cuda" else 0)

    @property
    def machine_bytes(self) -> int:
        """Return what all processes of one machine take: on a GPU each has its own."""
        return self.peak_bytes * (self.processes if self.device == "cpu" else 1)


def unknown(info: ModelInfo) -> str:
    """Return why the memory of a run with this model cannot be told beforehand, or ""."""
    if info.experts:
        return "the model is a mixture of experts, whose activations depend on what is routed where"
    lacking = [name for field, name in NEEDED.items() if not getattr(info, field)]
    if lacking:
        return f"the model's files do not say {', '.join(lacking)}"
    return ""


def plan(config: RunConfig, info: ModelInfo, *, gpu_bytes: int | None = None) -> MemoryPlan | None:
    """Return the phases of a run, or None where `unknown` says why not; `gpu_bytes` is one GPU's memory."""
    if unknown(info):
        return None
    planner = _Planner(config, info, Batch.of(config), gpu_bytes or GPU_BYTES)
    found = {
        "load": planner.load(),
        "generate": planner.generate(),
        "score": planner.score(),
        "update": planner.update(),
        "save": planner.save(),
    }
    phases = [
        Phase(name=name, parts={part: size for part, size in parts.items() if size}) for name, parts in found.items()
    ]
    return MemoryPlan(device="cuda" if config.resources.gpus else "cpu", processes=processes(config), phases=phases)


class _Planner:
    """Adds up the parts of each phase."""

    def __init__(self, config: RunConfig, info: ModelInfo, batch: Batch, gpu_bytes: int) -> None:
        self.config, self.info, self.batch, self.gpu_bytes = config, info, batch, gpu_bytes
        self.model, self.width = config.model, width_of(config.model)
        self.cuda = bool(config.resources.gpus)
        self.trained = trained(config, info)
        self.engine = forecast.resident(config, info, self.gpu_bytes)
        self.shards = processes(config) if config.resources.sharding != "none" else 1

    def load(self) -> dict[str, int]:
        """A file in another number format lies in memory beside what is made of it."""
        read = 0 if self.cuda or self.info.dtype == self.model.dtype else self.info.bytes
        return {**self._runtime(), **self._weights(), "copies": read}

    def generate(self) -> dict[str, int]:
        """Keys and values of the rows in flight, and a few [rows, V] arrays to draw from."""
        if self.engine:
            rows = max(1, min(self.batch.waiting, self.config.sampling.vllm.max_sequences))
            return {**self._resting(), "head": DRAWN * self._drawn(rows)}
        token = 2 * self.info.layers * self.info.kv_heads * self.info.head_size * self.width
        rows = min(self.batch.waiting, budgets.DECODE_ROWS, self._cache_room() // (token * self.batch.longest))
        rows = max(1, rows)
        return {**self._resting(), "cache": rows * self.batch.longest * token, "head": DRAWN * self._drawn(rows)}

    def score(self) -> dict[str, int]:
        """One forward pass: what passes through a layer, the last hidden states and a chunk of logits."""
        moving = self.batch.tokens * (passing_bytes(self.info, self.model) + 2 * self.info.hidden_size * self.width)
        return {**self._resting(), "activations": moving, "head": self._chunk()}

    def update(self) -> dict[str, int]:
        """The fullest moment of a micro-batch: at the head, behind its last layer, or when all gradients are there.

        Layers leave activations, or only their inputs where they are recomputed. In a step's only micro-batch gradients
        come while activations go.
        """
        tokens, left = self.batch.tokens, layer_bytes(self.info, self.model, self.batch)
        inputs = self.info.hidden_size * self.width
        recomputed = self.model.gradient_checkpointing
        kept = tokens * (3 * inputs + self.info.layers * (inputs if recomputed else left))
        passing = tokens * (passing_bytes(self.info, self.model) + (left if recomputed else 0))
        whole = WIDE * self.trained // self.shards
        embedding = 0 if self.model.lora.enabled else WIDE * self.info.vocabulary * self.info.hidden_size
        before = whole if self.batch.parted else min(whole, embedding)
        fused = self.config.resources.head_contract in ("auto", "fused") and self.shards == 1
        moments: list[dict[str, int]] = [
            {"gradients": before, "activations": kept, "head": self._chunk() + (0 if fused else embedding)},
            {"gradients": before, "activations": kept + passing},
            {"gradients": whole + embedding, "activations": passing},
        ]
        fullest = moments[0]
        for moment in moments[1:]:
            fullest = moment if sum(moment.values()) > sum(fullest.values()) else fullest
        return {**self._resting(gathered=False, awake=not forecast.sleeps(self.config)), **fullest}

    def save(self) -> dict[str, int]:
        """Adapters are added into a copy of the weights they change."""
        copy = self.info.parameters * self.width if self.model.lora.enabled else 0
        return {**self._resting(), "copies": copy}

    def _runtime(self) -> dict[str, int]:
        return {"runtime": CUDA_RUNTIME if self.cuda else CPU_RUNTIME}

    def _weights(self) -> dict[str, int]:
        adapters = WIDE * self.trained if self.model.lora.enabled else 0
        whole = self.info.parameters * self.width
        return {"weights": whole + adapters, "reference": whole if reference(self.config) else 0}

    def _drawn(self, rows: int) -> int:
        """Return one [rows, V] float32 array while tokens are drawn, few rows at a time."""
        row = self.info.vocabulary * WIDE
        return min(rows * row, max(budgets.DRAWN_BYTES, row))

    def _resting(self, *, gathered: bool = True, awake: bool = True) -> dict[str, int]:
        """Return what is held all the time once the first step is done.

        Shards are gathered only without gradients; an engine with weights of its own may sleep.
        """
        moments = int(MOMENTS[self.config.optimiser.state_precision] * self.trained) // self.shards
        weights, masters = self._weights(), 0
        if self.shards > 1:
            masters = WIDE * self.trained // self.shards
            weights["weights"] = weights["weights"] if gathered else self._layer()
            weights["reference"] //= 1 if gathered else self.shards
        elif self.width < WIDE and not self.model.lora.enabled:
            masters = WIDE * self.trained
        engine = self.engine if awake else 0
        return {**self._runtime(), **weights, "masters": masters, "optimiser": moments, "engine": engine}

    def _layer(self) -> int:
        """Return the weights of one layer and of the embedding, which are gathered at once while learning."""
        embedding = self.info.vocabulary * self.info.hidden_size
        return self.width * (embedding + max(0, self.info.parameters - embedding) // max(1, self.info.layers))

    def _cache_room(self) -> int:
        return int(self.gpu_bytes * budgets.GPU_CACHE_SHARE) if self.cuda else budgets.CPU_CACHE_BYTES

    def _chunk(self) -> int:
        """Return the logits that exist at once, those kept, and the hidden states of the head with their gradient."""
        logits = self.batch.states * self.info.vocabulary * WIDE
        least = budgets.CHUNK_ROWS * self.info.vocabulary * WIDE
        chunk = self.gpu_bytes // budgets.CHUNK_SHARE if self.cuda else max(budgets.CHUNK_BYTES, least)
        states = 2 * self.batch.states * self.info.hidden_size * WIDE
        if self.config.resources.kernel == "reference":
            return REFERENCE * logits + states
        kept = min(logits, budgets.KEPT_BYTES) if self.config.resources.head_contract == "kept" else 0
        return min(logits, chunk) + kept + states


def reference(config: RunConfig) -> bool:
    """Return whether a second model is held to compare with; adapters need none."""
    read = frozenset[str]().union(*(part.reads() for part in config.objective.parts))
    return bool({"ref_logprob", "hellinger"} & read) and not config.model.lora.enabled


def trained(config: RunConfig, info: ModelInfo) -> int:
    """Return the number of trained weights."""
    if not config.model.lora.enabled:
        return info.parameters
    return config.model.lora.rank * sum(adapted(info, config.model).values())
