"""RunConfig: the one declaration behind the form, the help text, the TOML file, the command line and the trainer.

Imports no torch. A section is a model, a field is a `setting`; choices among parts (task, rewards, the parts of an
objective) are unions told apart by `type`. Fields speak in prompts per step and samples per prompt; micro-batches
are derived and never change the result.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from trainer import passes
from trainer.conflicts import with_bounds, with_correction
from trainer.errors import ConfigError
from trainer.objectives import ObjectiveConfig
from trainer.part import Settings, setting
from trainer.rewards import REWARDS, RewardConfig
from trainer.rewards.task import TaskReward
from trainer.rollout.settings import SamplingConfig
from trainer.statistics import unavailable
from trainer.tasks import TASKS, TaskConfig
from trainer.tasks.countdown import Countdown


class LoraConfig(Settings):
    """LoRA: train low-rank adapters and leave the base model as it is (arXiv 2106.09685)."""

    enabled: bool = setting(False, help="Train low-rank adapters instead of all weights.")
    rank: int = setting(16, help="Rank of each adapter.", ge=1, le=512, show_if={"enabled": True})
    alpha: float = setting(
        32.0,
        help="Scale of the adapters; the update is multiplied by alpha / rank.",
        gt=0,
        le=4096,
        show_if={"enabled": True},
    )
    dropout: float = setting(
        0.0, help="Dropout inside the adapters.", ge=0, lt=1, show_if={"enabled": True}, advanced=True
    )
    target_modules: list[str] = setting(
        help="Module names that get adapters; empty means every linear layer.",
        default_factory=list,
        show_if={"enabled": True},
        advanced=True,
    )


class ModelConfig(Settings):
    """The policy to start from."""

    source: str = setting(
        "builtin:countdown-tiny",
        help="A built-in (builtin:NAME), a folder under a model root, or hub:ORG/NAME@REVISION.",
        max_length=500,
        min_length=1,
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", help="Number format of weights and activations; statistics are float32 always."
    )
    gradient_checkpointing: bool = setting(
        False, help="Recompute activations in the backward pass: less memory, about a third more time.", advanced=True
    )
    lora: LoraConfig = setting(LoraConfig(), help="Low-rank adapters.")


class OptimiserConfig(Settings):
    """How the weights move."""

    learning_rate: float = setting(1e-4, help="Peak learning rate of AdamW.", gt=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", help="Course of the learning rate after warm-up."
    )
    warmup_steps: int = setting(5, help="Steps over which the learning rate rises from zero.", unit="steps", ge=0)
    steps: int = setting(160, help="Rollout batches to train on.", unit="steps", ge=1, le=10_000_000)
    minibatches_per_step: int = setting(
        1, help="Optimiser updates on each rollout batch; above 1 later updates are off-policy.", ge=1, le=1024
    )
    old_logprobs: Literal["auto", "score", "engine"] = setting(
        "auto",
        title="Log-probs at the start of a step",
        help="score takes them from a pass of their own, engine from sampling, which saves that pass where a step is "
        "one update; auto takes them from sampling where that leaves the update as it is up to rounding.",
        advanced=True,
    )
    max_gradient_norm: float = setting(1.0, help="Gradients are scaled down to this norm.", gt=0, advanced=True)
    weight_decay: float = setting(0.0, help="Decoupled weight decay.", ge=0, le=1, advanced=True)
    beta1: float = setting(0.9, help="AdamW's first moment decay.", ge=0, lt=1, advanced=True)
    beta2: float = setting(0.95, help="AdamW's second moment decay.", ge=0, lt=1, advanced=True)
    epsilon: float = setting(1e-8, help="AdamW's denominator floor.", gt=0, le=1e-2, advanced=True)
    state_precision: Literal["float32", "8bit"] = setting(
        "float32",
        help="Number format of AdamW's two moments: float32 takes 8 bytes of memory a weight, 8bit about 2.",
        advanced=True,
    )
    tokens_per_microbatch: int = setting(
        16384,
        help="Tokens in one forward pass; halved by itself when memory runs out, never changes the result.",
        unit="tokens",
        ge=1,
        advanced=True,
    )


class EvaluationConfig(Settings):
    """Measuring on held-out prompts."""

    every_steps: int = setting(
        20,
        help="Steps between evaluations; 0 turns them off. Step 0 and the last step are always measured.",
        unit="steps",
        ge=0,
    )
    prompts: int = setting(
        64, help="Held-out prompts measured each time, the same ones.", unit="prompts", ge=1, le=100_000
    )
    samples_per_prompt: int = setting(
        16, help="Completions of each; pass@k and maj@k are taken over them.", unit="samples", ge=1, le=1024
    )
    temperature: float = setting(1.0, help="Sampling temperature of the evaluation.", gt=0, le=10)
    greedy: bool = setting(True, help="Also decode each prompt once greedily.", advanced=True)


class CheckpointConfig(Settings):
    """What is kept to resume from and to export."""

    every_steps: int = setting(50, help="Steps between checkpoints; 0 keeps only the last.", unit="steps", ge=0)
    keep: int = setting(3, help="Newest checkpoints kept.", ge=1, le=1000)


class RecordingConfig(Settings):
    """What is written down of the rollouts."""

    every_steps: int = setting(1, help="Steps between recorded rollout batches.", unit="steps", ge=1)
    max_samples: int = setting(
        256, help="Completions recorded of a batch, whole groups first come first.", unit="samples", ge=1, le=100_000
    )
    live_samples: int = setting(
        16,
        help="Completions streamed token by token while they are generated, and of each prompt that a viewer picks.",
        unit="samples",
        ge=0,
        le=256,
    )


class ResourcesConfig(Settings):
    """Where the run may compute."""

    gpus: int = setting(0, help="GPUs to lease; 0 runs on the CPU.", ge=0, le=1024)
    cpu_threads: int = setting(1, help="Threads for each CPU process.", ge=1, le=256)
    head_contract: Literal["auto", "fused", "kept", "recompute"] = setting(
        "auto",
        help="How gradients pass the output layer. fused: with the statistics, one chunk of logits at a time; kept: "
        "logits stay in memory until the backward pass; recompute: they are computed twice. auto is fused, which is "
        "the fastest and smallest. Never changes the result.",
        advanced=True,
    )
    kernel: Literal["auto", "reference", "chunked", "triton"] = setting(
        "auto",
        help="What computes log-probs and entropies: auto is triton on a GPU that runs it and chunked elsewhere; "
        "reference is the slow definition. Never changes the result.",
        advanced=True,
    )
    processes: int = setting(
        1, help="Trainer processes when no GPU is leased; with GPUs there is one for each.", ge=1, le=256, advanced=True
    )
    sharding: Literal["none", "fsdp2"] = setting(
        "none",
        help="none: every process holds all weights, gradients and moments. fsdp2: each holds its share, which takes "
        "less memory and more communication; while sampling and scoring every process has all weights.",
        advanced=True,
    )


class RunConfig(Settings):
    """One run, completely."""

    name: str = setting("", help="Shown in lists; empty means one is made up.", max_length=120)
    seed: int = setting(0, help="Seeds data order, sampling and initialisation.", ge=0, le=2**31 - 1)
    model: ModelConfig = setting(ModelConfig(), help="The policy to start from.")
    task: TaskConfig = setting(Countdown(), help="Problems and what a right answer is.")
    rewards: list[RewardConfig] = setting(
        help="Weighted parts of the reward, summed.",
        default_factory=lambda: [TaskReward()],
        min_length=1,
        max_length=16,
    )
    sampling: SamplingConfig = setting(SamplingConfig(), help="How rollouts are drawn.")
    objective: ObjectiveConfig = setting(ObjectiveConfig(), help="What is maximised and how entropy is controlled.")
    optimiser: OptimiserConfig = setting(OptimiserConfig(), help="How the weights move.")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), help="Measuring on held-out prompts.")
    checkpoint: CheckpointConfig = setting(CheckpointConfig(), help="What is kept to resume from and to export.")
    recording: RecordingConfig = setting(RecordingConfig(), help="What is written down of the rollouts.")
    resources: ResourcesConfig = setting(ResourcesConfig(), help="Where the run may compute.")

    @model_validator(mode="after")
    def _statistics_exist(self) -> RunConfig:
        for part in self.objective.parts:
            if lacking := unavailable(part.reads()):
                names = ", ".join(f"{info.name} ({info.help})" for info in lacking)
                raise ValueError(
                    f"objective.parts: {part.type} reads {names}, which takes {lacking[0].missing}; the trainer cannot "
                    "do that yet: choose another objective, or apply this one to recorded numbers with "
                    "evaluate-objective"
                )
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> RunConfig:
        rollout = self.objective.rollout
        if rollout and (why := rollout.unfit(self.sampling.samples_per_prompt)):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _sampling_gives_logprobs(self) -> RunConfig:
        if self.optimiser.old_logprobs == "engine" and (why := passes.needs_scoring(self)):
            raise ValueError(f"optimiser.old_logprobs: engine is not enough here: {why}; choose auto or score")
        return self

    @model_validator(mode="after")
    def _server_fits(self) -> RunConfig:
        server = self.sampling.server
        if not server.enabled:
            if self.sampling.staleness:
                raise ValueError(
                    "sampling.staleness: the trainer itself cannot sample while it learns; turn on "
                    "sampling.server.enabled, or choose 0"
                )
            return self
        if server.address and server.gpus:
            raise ValueError(
                f"sampling.server.gpus: the server at {server.address} has its own GPUs and none are leased for it; "
                "choose 0"
            )
        if self.resources.gpus and not server.gpus and not server.address:
            raise ValueError(
                "sampling.server.gpus: a run on GPUs needs one for its server; choose 1, or turn off "
                "sampling.server.enabled to generate on the trainer's"
            )
        return self

    @model_validator(mode="after")
    def _drawn_as_needed(self) -> RunConfig:
        if why := with_correction(self) or with_bounds(self):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _shards_go_somewhere(self) -> RunConfig:
        if self.resources.sharding == "none":
            return self
        if (self.resources.gpus or self.resources.processes) == 1:
            raise ValueError(
                "resources.sharding: one process has nobody to share weights with; choose none or more processes"
            )
        if self.model.lora.enabled:
            raise ValueError(
                "resources.sharding: adapters are few weights, and sharding them is not supported; choose none or turn "
                "model.lora off"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> RunConfig:
        if self.sampling.prompts_per_step % self.optimiser.minibatches_per_step:
            raise ValueError(
                f"optimiser.minibatches_per_step: {self.sampling.prompts_per_step} prompts per step do not divide into "
                f"{self.optimiser.minibatches_per_step} minibatches; choose a divisor of sampling.prompts_per_step"
            )
        processes = self.resources.gpus or self.resources.processes
        if self.sampling.prompts_per_step % processes:
            raise ValueError(
                f"sampling.prompts_per_step: {self.sampling.prompts_per_step} prompts do not divide among {processes} "
                "processes; choose a multiple of the number of GPUs or processes"
            )
        return self


def leased_gpus(config: RunConfig) -> int:
    """Return how many GPUs a run needs in all: the trainer's, then those of a server that starts with it."""
    return config.resources.gpus + (config.sampling.server.gpus if config.sampling.server.enabled else 0)


def dotted(location: tuple[int | str, ...]) -> str:
    """Return a pydantic location as the path a person would write: without the tags of unions."""
    pairs = zip(("", *location), location, strict=False)
    tagged = [
        (before == "task" and part in TASKS) or (isinstance(before, int) and part in REWARDS) for before, part in pairs
    ]
    return ".".join(str(part) for part, tag in zip(location, tagged, strict=True) if not tag)


def errors_of(error: ValidationError) -> dict[str, str]:
    """Return {dotted field: one sentence}; messages of cross-field checks start with the field they concern."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path, message = dotted(item["loc"]), item["msg"].removeprefix("Value error, ")
        head, _, rest = message.partition(": ")
        if item["type"] == "value_error" and rest and " " not in head:
            path, message = head, rest
        found.setdefault(path, message)
    return found


def load(source: Path | str | dict[str, Any]) -> RunConfig:
    """Read a config from a .toml or .json file, or a dict; raise ConfigError naming the first wrong field."""
    try:
        if isinstance(source, dict):
            return RunConfig.model_validate(source)
        path = Path(source)
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            return RunConfig.model_validate_json(text)
        return RunConfig.model_validate(tomllib.loads(text))
    except ValidationError as error:
        field, message = next(iter(errors_of(error).items()))
        raise ConfigError(f"{field or 'config'}: {message}", field) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {source}: {error}") from error


def to_toml(config: RunConfig) -> str:
    """Return the resolved config as TOML that `load` reads back to an equal config (None fields are left out)."""
    import tomli_w  # here: a machine that only checks its GPU may have no more than torch and vLLM

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
