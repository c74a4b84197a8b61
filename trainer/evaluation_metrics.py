"""What k samples of a prompt say: avg@k, pass@k, maj@k and how many different right answers there are. No torch.

A prompt is a list of samples, a sample a pair (right, answer): `right` is True, False, or None for an invalid sample,
`answer` the canonical form or None. Invalid samples are left out; a prompt with too few valid samples is left out of
that figure. A figure over no prompt at all is None, never a silent zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

Sample = tuple[bool | None, str | None]


def avg_at_k(prompts: Sequence[Sequence[Sample]]) -> float | None:
    """Return the mean over prompts of the share of right samples, in [0, 1]."""
    return _mean(prompts, lambda valid: sum(bool(right) for right, _ in valid) / len(valid))


def pass_at_k(prompts: Sequence[Sequence[Sample]], k: int) -> float | None:
    """Return the unbiased estimate of "at least one of k samples is right", in [0, 1].

    For n samples with c right: 1 - C(n-c, k) / C(n, k) (Codex, arXiv 2107.03374, equation 1). Prompts with fewer than
    k valid samples are left out.
    """

    def of_prompt(valid: Sequence[Sample]) -> float | None:
        n, right = len(valid), sum(bool(right) for right, _ in valid)
        return None if n < k else 1.0 - math.comb(n - right, k) / math.comb(n, k)

    return _mean(prompts, of_prompt)


def maj_at_k(prompts: Sequence[Sequence[Sample]]) -> float | None:
    """Return the share of prompts whose most frequent answer is right; of equally frequent ones the first seen votes.

    Samples without an answer do not vote; a prompt in which none votes counts as wrong. Where equal answers were
    graded differently, the first of them decides.
    """

    def of_prompt(valid: Sequence[Sample]) -> float:
        votes = Counter(answer for _, answer in valid if answer is not None)
        if not votes:
            return 0.0
        winner = max(votes, key=votes.__getitem__)  # dicts keep the order in which answers came, max keeps the first
        return float(next(bool(right) for right, answer in valid if answer == winner))

    return _mean(prompts, of_prompt)


def distinct_right(prompts: Sequence[Sequence[Sample]]) -> float | None:
    """Return the mean number of different right answers of a prompt: the figure that falls when a policy collapses."""
    return _mean(prompts, lambda valid: len({answer for right, answer in valid if right and answer is not None}))


def summary(prompts: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Return {avg@k, pass@1 .. pass@k in powers of two and k itself, maj@k, distinct@k}.

    k is the largest number of samples of any prompt; figures over no prompt are left out.
    """
    k = max((len(samples) for samples in prompts), default=0)
    steps = sorted({1 << power for power in range(k.bit_length()) if 1 << power <= k} | ({k} if k else set()))
    figures = {
        f"avg@{k}": avg_at_k(prompts),
        **{f"pass@{step}": pass_at_k(prompts, step) for step in steps},
        f"maj@{k}": maj_at_k(prompts),
        f"distinct@{k}": distinct_right(prompts),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _mean(prompts: Sequence[Sequence[Sample]], of_prompt: Callable[[Sequence[Sample]], float | None]) -> float | None:
    valid = [[sample for sample in samples if sample[0] is not None] for samples in prompts]
    figures = [figure for samples in valid if samples and (figure := of_prompt(samples)) is not None]
    return math.fsum(figures) / len(figures) if figures else None
