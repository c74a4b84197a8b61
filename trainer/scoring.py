"""Scorer: the numbers an objective reads of this step's tokens, from passes without gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.batch import TokenBatch
from trainer.completion import Completion
from trainer.distributed import World
from trainer.kernels import EXTRAS
from trainer.layout import Layout
from trainer.policy import Policy, Trajectory
from trainer.statistics import MOMENTS, STATISTICS
from trainer.text_statistics import COMPLETION_FACTS, TOKEN_TEXT, completion_facts, token_statistics


class Scorer:
    """Computes the statistics that an objective's parts read, and no others."""

    def __init__(self, policy: Policy, reference: Policy | None, needs: frozenset[str], world: World) -> None:
        """`reference` None stands for the policy without its adapters."""
        self.policy, self.reference, self.world = policy, reference or policy, world
        self.needs = needs
        self.head = [name for name in (*MOMENTS, *EXTRAS) if name in needs]
        self.again = [name for name in self.head if STATISTICS[name].policy == "current"]
        self.text = [name for name in TOKEN_TEXT if name in needs]
        self.facts = [name for name in COMPLETION_FACTS if name in needs]

    def layout(self, completions: Sequence[Completion]) -> Layout:
        """Agree with the other processes on where everybody's tokens stand."""
        lengths = [completion.tokens.learned for completion in completions]
        indices = [completion.index for completion in completions]
        return Layout.of(self.world, torch.tensor(indices, dtype=torch.long), torch.tensor(lengths, dtype=torch.long))

    def start(
        self,
        completions: list[Completion],
        temperature: float,
        options: Mapping[str, Any],
        *,
        also: Collection[str] = (),
        sampled: bool = False,
    ) -> tuple[TokenBatch, Layout]:
        """Return the step's batch with the step-start policy's statistics, and those of the head named in `also`.

        `sampled` takes them from sampling instead of a pass of their own (see trainer/passes.py).
        """
        layout = self.layout(completions)
        head = list(dict.fromkeys((*self.head, *also)))
        mine = self._tokens(completions, temperature, options, head, sampled=sampled)
        tokens = layout.tokens(torch.stack(list(mine.values()), 1)).double()  # [N, F]
        columns = dict(zip(mine, tokens.unbind(1), strict=True))
        facts = layout.completions(
            torch.tensor([_facts(completion) for completion in completions], dtype=torch.float64)
        )  # [S, 7]
        learns = facts[:, 6]
        extra = {name: columns[name] for name in (*head, *self.text, "hellinger") if name in columns}
        extra = {name: value for name, value in extra.items() if not STATISTICS[name].core}
        return TokenBatch(
            logprob=columns["logprob"],
            sequence=layout.sequence,
            position=columns["position"].long(),
            group=facts[:, 0].long(),
            reward=facts[:, 1],
            length=facts[:, 5].long(),
            entropy=columns["entropy"],
            old_logprob=columns["logprob"],
            old_entropy=columns["entropy"],
            engine_logprob=columns["engine_logprob"],
            ref_logprob=columns.get("ref_logprob"),
            sum_p2=columns.get("sum_p2"),
            sum_p2_logp=columns.get("sum_p2_logp"),
            mask=None if bool(learns.all()) else learns[layout.sequence],
            valid=facts[:, 2].bool(),
            truncated=facts[:, 3].bool(),
            auxiliary=facts[:, 4].bool() if bool(facts[:, 4].any()) else None,
            extra=extra | self._completions(completions, layout, temperature, options),
        ), layout

    def refresh(
        self,
        batch: TokenBatch,
        completions: list[Completion],
        layout: Layout,
        temperature: float,
        options: Mapping[str, Any],
        *,
        also: Collection[str] = (),
    ) -> TokenBatch:
        """Return the batch with the statistics of the policy as it is now."""
        trajectories = [completion.tokens for completion in completions]
        again = list(dict.fromkeys((*self.again, *also)))
        scores = self.policy.score(trajectories, temperature, names=again, options=options)
        tokens = layout.tokens(torch.stack(list(scores.values()), 1)).double()
        fresh = dict(zip(scores, tokens.unbind(1), strict=True))
        core = {name: value for name, value in fresh.items() if STATISTICS[name].core}
        extra = {name: value for name, value in fresh.items() if name not in core}
        return batch.replace(**core, extra={**batch.extra, **extra})

    def _tokens(
        self,
        completions: list[Completion],
        temperature: float,
        options: Mapping[str, Any],
        head: list[str],
        *,
        sampled: bool,
    ) -> dict[str, Tensor]:
        """Return the statistics of this process's tokens by name, [n] each."""
        trajectories = [completion.tokens for completion in completions]
        if sampled:
            scores = _said(completions, head)
        else:
            scores = self.policy.score(trajectories, temperature, names=head, options=options)
        if "ref_logprob" in self.needs:
            with self.reference.base():
                scores["ref_logprob"] = self.reference.score(trajectories, temperature)["logprob"]
        if "hellinger" in self.needs:
            scores["hellinger"] = self.policy.distance(self.reference, trajectories, temperature)
        if self.text:
            columns = token_statistics(self.text, completions, options).unbind(1)
            scores |= dict(zip(self.text, columns, strict=True))
        said = _flat(completion.tokens.counting(completion.engine_logprob) for completion in completions)
        return {**scores, "engine_logprob": said, "position": _positions(trajectories)}

    def _completions(
        self, completions: list[Completion], layout: Layout, temperature: float, options: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return the rarer statistics of the step's completions by name, [S] or [S, E]."""
        found = {}
        if self.facts:
            columns = layout.completions(completion_facts(self.facts, completions, options)).double().unbind(1)
            found = dict(zip(self.facts, columns, strict=True))
        if "gradient_feature" in self.needs:
            mine = self.policy.features([completion.tokens for completion in completions], temperature)
            found["gradient_feature"] = layout.completions(mine).double()
        return found


def _facts(completion: Completion) -> list[float]:
    """Return group, reward, whether it has one, was cut off, is auxiliary, then its tokens and whether it learns."""
    reward, cut = completion.scored.reward, completion.finish_reason == "length"
    graded = [0.0 if reward is None else reward, reward is not None]
    return [completion.group, *graded, cut, completion.auxiliary, len(completion.tokens.completion), completion.learns]


def _said(completions: list[Completion], moments: list[str]) -> dict[str, Tensor]:
    """Return what sampling said of these completions' tokens that count: float32 [n] by statistic."""
    found = {
        "logprob": _flat(c.tokens.counting(c.engine_logprob) for c in completions),
        "entropy": _flat(c.tokens.counting(c.engine_entropy) for c in completions),
    }
    return found | {
        name: _flat(c.tokens.counting(c.engine_moments.get(name, [])) for c in completions) for name in moments
    }


def _positions(trajectories: list[Trajectory]) -> Tensor:
    """Return the place in its completion of each token that counts, float32 [n]: exact below 2^24."""
    return _flat(row.counting(range(len(row.completion))) for row in trajectories)


def _flat(parts: Iterable[Sequence[float]]) -> Tensor:
    return torch.tensor([value for part in parts for value in part], dtype=torch.float32)
