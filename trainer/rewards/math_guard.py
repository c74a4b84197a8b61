r"""What may be handed to sympy: short answers whose powers cannot grow beyond a thousand digits.

sympy evaluates `9^{9^{9^9}}` while it reads it, inside C, deaf to signals. Looking at each power alone is not enough
((9^9)^{9999})^{9999} passes such a check, so the size of the whole tower is bounded from above.
"""

from __future__ import annotations

import math
import re

MAX_CHARACTERS = 256
MAX_DIGITS = 60
MAX_NESTING = 20
MAX_VALUE_DIGITS = 1000.0
MAX_FACTORIAL = 100
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\*\*|[\^{}()\[\]!A-Za-z]", re.ASCII | re.DOTALL)
OPENING, CLOSING = "{([", "})]"


def refusal(answer: str) -> str | None:
    """Return why the answer must not reach sympy, or None where it may."""
    if len(answer) > MAX_CHARACTERS:
        return "too long"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", answer):
        return "a number with too many digits"
    if re.search(r"!\s*!|[})\]]\s*!", answer):
        return "a chain of factorials"
    tokens = ["^" if token == "**" else token for token in TOKEN.findall(answer)]
    depth = 0
    for token in tokens:
        depth += (token in OPENING) - (token in CLOSING)
        if depth > MAX_NESTING:
            return "nested too deeply"
    return None if _Size(tokens).of_all() <= MAX_VALUE_DIGITS else "a power too large to compute"


class _Size:
    """Bounds log10 of an expression: every operator counts as a product, every letter as ten, never below nothing."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def of_all(self) -> float:
        total = 0.0
        while self.at < len(self.tokens):  # stray closing brackets end a group; what follows counts as well
            total += self.of_group()
        return total

    def of_group(self) -> float:
        total = 0.0
        while (token := self._next()) is not None and token not in CLOSING:
            total += self.of_power(token)
        return total

    def of_power(self, token: str) -> float:
        size = self.of_atom(token)
        if self._peek() == "!":
            size = self.of_factorial(size)
        if self._peek() != "^":
            return size
        self.at += 1
        following = self._next()
        if following is None:
            return size
        exponent = self.of_power(following)  # right-associative: the rest of the tower is the exponent
        return max(size, 1.0) * 10.0**exponent if exponent < 12 else math.inf

    def of_atom(self, token: str) -> float:
        if token in OPENING:
            return self.of_group()
        if token[0].isdigit():
            return max(0.0, math.log10(float(token) or 1.0))
        return 1.0 if token.isalpha() else 0.0

    def of_factorial(self, size: float) -> float:
        self.at += 1
        return math.inf if size > math.log10(MAX_FACTORIAL) else 10.0**size * max(size, 0.5)

    def _peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _next(self) -> str | None:
        token = self._peek()
        self.at += token is not None
        return token
