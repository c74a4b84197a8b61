"""The Engine that the trainer uses: a driver beside the policy, given the policy's weights whenever they moved."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trainer.errors import ResourceError, RunFailed, TrainerError
from trainer.policy import Policy
from trainer.rollout.base import Caps, Generation, GenRequest
from trainer.rollout.ledger import OnChunk, OnProgress
from trainer.rollout.probe import difference
from trainer.rollout.settings import SamplingConfig
from trainer.rollout.vllm.driver import Driver
from trainer.rollout.vllm.start import several
from trainer.rollout.weights import weights

logger = logging.getLogger(__name__)
T = TypeVar("T")


class VllmEngine:
    """Generates with vLLM in this process; every process of a run has its own, on its own device."""

    def __init__(self, policy: Policy, sampling: SamplingConfig) -> None:
        """Start vLLM; raises ConfigError or ResourceError saying what is missing."""
        self.policy, self.sampling = policy, sampling
        self.version: int | None = None  # of the weights it holds
        self.restarts = 0  # of vLLM, after failures
        self.driver = self._started()

    @property
    def caps(self) -> Caps:
        return self.driver.caps

    def sync_weights(self, version: int) -> bool:
        """Take over the policy's weights unless these are the ones held; return whether they were copied."""
        if self.version == version:
            return False
        if self.driver.closed:
            self.driver = self._started()
        with self.policy.gathered():
            self.driver.refresh(weights(self.policy))
        self.version = version
        return True

    def rest(self) -> None:
        """Give the GPU's memory back until the next `sync_weights`."""
        if self.driver.sleeps:
            self.driver.sleep()
            self.version = None

    def probe(self) -> float:
        """Return the largest difference between vLLM's and the trainer's log-probs on a fixed text, nats."""
        return difference(self.policy, self.score, room=self.driver.longest)

    def run(
        self, requests: Sequence[GenRequest], on_chunk: OnChunk | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Return one Generation for each request, in order.

        Where vLLM fails, it is started anew and the unfinished requests go on from the tokens they have; where that
        fails too, raises ResourceError.
        """
        version, ledger = self._held(), self.driver.ledger(requests, on_chunk, on_progress)
        self._insistently(lambda: self.driver.go_on(ledger))
        return ledger.generations(version)

    def score(self, requests: Sequence[GenRequest]) -> list[Generation]:
        """Return vLLM's own statistics of the prefix tokens of each request."""
        version = self._held()
        return self._insistently(lambda: self.driver.score(requests, version=version))

    def close(self) -> None:
        """End vLLM; may be called twice. Another `sync_weights` would start it again."""
        self.version = None
        self.driver.close()

    def _held(self) -> int:
        """Return the version of the weights; raises RunFailed where there are none: vLLM would sample all the same."""
        if self.version is None:
            raise RunFailed("vLLM holds no weights: it failed or rests, and was not given any since")
        return self.version

    def _insistently(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TrainerError:
            raise
        except Exception as error:  # vLLM raises what its libraries raise
            if several():  # starting takes all processes, and the others are elsewhere
                raise ResourceError(f"vLLM failed ({_said(error)}); resume the run from its checkpoint") from error
            logger.warning("vLLM failed and is started anew\n%s", traceback.format_exc())
        try:
            self._restart()
            return work()
        except TrainerError:
            raise
        except Exception as error:
            self.close()
            raise ResourceError(
                f"vLLM failed twice in a row ({_said(error)}); resume the run from its checkpoint, with less "
                "sampling.vllm.max_sequences or with sampling.engine hf"
            ) from error

    def _restart(self) -> None:
        version = self._held()
        self.restarts += 1
        self.close()
        self.sync_weights(version)

    def _started(self) -> Driver:
        sampling, policy = self.sampling, self.policy
        longest = sampling.max_prompt_tokens + sampling.max_completion_tokens
        return Driver(
            Path(policy.lm.name_or_path),
            sampling.vllm,
            dtype=policy.config.dtype,
            device=policy.device,
            longest=min(longest, policy.context or longest),
            stop_ids=policy.stop_ids,
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
