"""What the likeliest tokens say of an entropy: the interval in which it must lie."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval(logprobs: Sequence[float], vocabulary: int) -> tuple[float, float]:
    """Return the least and the greatest entropy, nats, of a distribution whose likeliest tokens have these log-probs.

    The mass left over lies on the other tokens, none of them likelier than the last one known. Entropy is least where
    as few of them as possible share it, and greatest where all do alike.
    """
    known = [value for value in logprobs if value > -math.inf]
    head = -sum(value * math.exp(value) for value in known)
    rest, others = 1 - sum(map(math.exp, known)), vocabulary - len(known)
    if rest <= 1e-9 or others <= 0:
        return head, head
    most = math.exp(min(known))
    full = min(int(rest / most), others)  # tokens as likely as the last one known
    left = rest - full * most
    least = -full * most * math.log(most) - (left * math.log(left) if left > 0 else 0.0)
    return head + least, max(head + least, head - rest * math.log(rest / others))
