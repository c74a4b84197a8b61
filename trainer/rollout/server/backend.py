"""Backends: what generates inside a server. An engine over a model of its own, whose weights arrive from a trainer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from trainer.config import LoraConfig, RunConfig
from trainer.errors import RunFailed
from trainer.rollout.base import Caps, Generation, GenRequest
from trainer.rollout.ledger import OnChunk, OnProgress

if TYPE_CHECKING:
    import torch
    from torch import Tensor


ALONE_SHARE = 0.9  # of a GPU's memory for vLLM where the trainer is elsewhere


class Backend(Protocol):
    """Generates with whatever weights it was last given. Callbacks may raise, which ends the run they belong to."""

    @property
    def caps(self) -> Caps: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int: ...

    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]: ...

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]: ...

    def stop_at(self, ids: Collection[int]) -> None:
        """Let completions end with these tokens, which are the trainer's."""
        ...

    def load(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights, given by name, each once; raises RunFailed where one is missing or unknown."""
        ...

    def sleep(self) -> None:
        """Give the device's memory back, weights included, until the next `load`; may be called twice."""
        ...

    def close(self) -> None: ...


def backend(config: RunConfig) -> Backend:
    """Return what `sampling.engine` names, with the model loaded; raises ConfigError or ResourceError."""
    import torch

    torch.set_num_threads(config.resources.cpu_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds: dict[str, type[HfBackend] | type[VllmBackend]] = {"hf": HfBackend, "vllm": VllmBackend}
    return kinds[config.sampling.engine](config, device)


def complete(expected: Iterable[str], loaded: Iterable[str]) -> None:
    """Raise RunFailed where the weights that came are not those of the model."""
    expected, loaded = set(expected), set(loaded)
    for names, what in ((expected - loaded, "were not sent"), (loaded - expected, "are not the model's")):
        if names:
            raise RunFailed(
                f"{len(names)} weights {what} (such as {min(names)}); the rollout server holds another model than the "
                "trainer: start it with the run's own config"
            )


class HfBackend:
    """The `hf` engine over its own copy of the model: any device, exact entropy; for tests and small hosts."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Load what the run starts from, without adapters: they arrive merged into the weights."""
        from trainer.models import resolve
        from trainer.policy import Policy
        from trainer.rollout.hf import HfEngine
        from trainer.surroundings import microbatch_tokens

        plain = config.model.model_copy(update={"lora": LoraConfig(), "gradient_checkpointing": False})
        self.policy, self.device = Policy(resolve(config.model.source).path, plain, device), device
        self.policy.budget = microbatch_tokens(config, device)
        self.engine, self.vocabulary = HfEngine(self.policy), self.policy.vocabulary
        self.caps = self.engine.caps
        self.run, self.score, self.close = self.engine.run, self.engine.score, self.engine.close

    def stop_at(self, ids: Collection[int]) -> None:
        self.policy.stop_ids = frozenset(ids)

    def load(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the weights into place; what the model shares among modules is sent once."""
        from trainer.rollout.weights import unique

        self.policy.lm.to(self.device)
        own, loaded = unique(self.policy.lm.state_dict()), []
        for name, tensor in tensors:
            loaded.append(name)
            if name in own:
                own[name].copy_(tensor)
        complete(own, loaded)
        self.engine.sync_weights(version)

    def sleep(self) -> None:
        import torch

        if self.device.type == "cuda":
            self.policy.lm.to("cpu")
            torch.cuda.empty_cache()


class VllmBackend:
    """vLLM, driven as it is inside the trainer; here it has the GPU for itself."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Start vLLM without weights; raises ConfigError or ResourceError saying what is missing."""
        from transformers import AutoConfig

        from trainer.models import resolve
        from trainer.rollout.vllm.driver import Driver

        path, sampling = resolve(config.model.source).path, config.sampling
        model = AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config()
        longest = sampling.max_prompt_tokens + sampling.max_completion_tokens
        share = max(ALONE_SHARE, sampling.vllm.memory_share)
        self.driver = Driver(
            path, sampling.vllm.model_copy(update={"memory_share": share}), dtype=config.model.dtype, device=device,
            longest=min(longest, getattr(model, "max_position_embeddings", None) or longest), stop_ids=(),
        )  # fmt: skip
        self.device, self.vocabulary, self.version = device, int(model.vocab_size), 0
        self.sleep, self.close = self.driver.sleep, self.driver.close

    @property
    def caps(self) -> Caps:
        return self.driver.caps

    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        return self.driver.run(requests, on_chunk, on_progress, version=self.version)

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        return self.driver.score(requests, version=self.version)

    def stop_at(self, ids: Collection[int]) -> None:
        self.driver.stop_ids = frozenset(ids)

    def load(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights, waking up where asleep."""
        self.driver.refresh(tensors)
        self.version = version
