"""What one process works on at its largest: completions in flight, and the tokens of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from trainer import budgets
from trainer.config import RunConfig


@dataclass(frozen=True)
class Batch:
    """Sizes of one process's work where every prompt and completion is as long as allowed."""

    waiting: int  # completions to sample
    longest: int  # tokens of a prompt and its completion
    tokens: int  # of a micro-batch
    parted: bool  # whether a step has more than one
    states: int  # of these, tokens of completions
    keys: float  # tokens attended to that are gathered for a token of a micro-batch
    scores: float  # entries of attention masks for the same

    @classmethod
    def of(cls, config: RunConfig) -> Batch:
        sampling, optimiser = config.sampling, config.optimiser
        prompts, rollout = _share(sampling.prompts_per_step, config), config.objective.rollout
        samples = flying = sampling.samples_per_prompt
        if rollout:
            samples, flying = rollout.most(samples), rollout.at_once(samples)
        prompt, completion = sampling.max_prompt_tokens, sampling.max_completion_tokens
        learned = -(-prompts // optimiser.minibatches_per_step)
        whole = learned * (prompt + samples * completion)  # a prompt runs once for all its completions
        longest = prompt + completion
        tokens = min(whole, max(longest, _even(whole, microbatch(config)) + longest), max(longest, microbatch(config)))
        share = samples * completion / (prompt + samples * completion)
        pieces, cuda = _pieces(completion), bool(config.resources.gpus)
        attended = prompt + completion * (pieces + 1) / (2 * pieces)  # by a token of a completion, on average
        keys = share * pieces * attended / completion + 1 - share
        return cls(
            waiting=max(prompts * flying, _measured(config)),
            longest=longest,
            tokens=tokens,
            parted=tokens < whole,
            states=min(tokens, learned * samples * completion, round(tokens * share) + completion),
            keys=1 if cuda else keys,
            scores=0 if cuda else share * attended + (1 - share) * prompt,
        )


def processes(config: RunConfig) -> int:
    """Return over how many processes a run spreads."""
    return config.resources.gpus or config.resources.processes


def microbatch(config: RunConfig) -> int:
    """Return the token budget of one forward pass."""
    wanted = config.optimiser.tokens_per_microbatch
    return wanted if config.resources.gpus else min(wanted, budgets.CPU_MICROBATCH_TOKENS)


def _share(count: int, config: RunConfig) -> int:
    """Return one process's part of a number of prompts."""
    return -(-count // processes(config))


def _measured(config: RunConfig) -> int:
    """Return the completions of an evaluation."""
    evaluation = config.evaluation
    return _share(evaluation.prompts, config) * evaluation.samples_per_prompt if evaluation.every_steps else 0


def _even(whole: int, budget: int) -> int:
    """Return the tokens of each of as few micro-batches as the budget needs."""
    return -(-whole // -(-whole // budget))


def _pieces(tokens: int) -> int:
    """Return into how many pieces attention on a CPU cuts a completion."""
    return min(budgets.PIECES, -(-tokens // budgets.SHORTEST_PIECE))
