"""Statistics of what a completion says: phrases, trigger words, the end of the thinking, the answer's number.

Texts are model output: they are searched for fixed strings only, never interpreted.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.completion import Completion

TOKEN_TEXT = ("planning", "trigger")
COMPLETION_FACTS = ("think_end", "answer", "correct", "copied", "task", "trajectory", "turn", "parent", "fork_at")
COPIED = 0.8  # share of an answer's words, in order, above which it only repeats the question (EMPO, 2504.05812)


def token_statistics(names: Sequence[str], completions: Sequence[Completion], options: Mapping[str, Any]) -> Tensor:
    """Return the named statistics of this process's tokens that count, [n, F]."""
    rows = [
        torch.tensor([c.tokens.counting(_token_row(name, c, options)) for name in names]).T.reshape(-1, len(names))
        for c in completions
        if c.tokens.learned
    ]
    return torch.cat(rows) if rows else torch.zeros(0, len(names))


def completion_facts(names: Sequence[str], completions: Sequence[Completion], options: Mapping[str, Any]) -> Tensor:
    """Return the named statistics of this process's completions, [s, F]; groups must be whole."""
    answers = _answers(completions)
    facts = {
        "think_end": lambda c: _think_end(c, options["delimiter"]),
        "answer": lambda c: answers[c.index],
        "correct": lambda c: float(bool(c.right)),
        "copied": lambda c: float(_copied(c.scored.canonical or "", c.row.prompt)),
        "task": lambda c: 0,
        "trajectory": lambda c: c.index,
        "turn": lambda c: 0,
        "parent": lambda c: -1 if c.parent is None else c.parent,
        "fork_at": lambda c: c.fork_at or 0,
    }
    return torch.tensor([[float(facts[name](c)) for name in names] for c in completions]).reshape(-1, len(names))


def _token_row(name: str, completion: Completion, options: Mapping[str, Any]) -> list[float]:
    """Return 1 for each token inside a phrase, or in which a trigger word begins, else 0."""
    row = [0.0] * len(completion.tokens.completion)
    words = options["phrases" if name == "planning" else "triggers"]
    for start, end in _matches(completion.text, words):
        first = _token_at(completion.offsets, start)
        last = first if name == "trigger" else _token_at(completion.offsets, end - 1)
        row[first : last + 1] = [1.0] * (last + 1 - first)
    return row


def _matches(text: str, words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the byte spans of whole words or phrases, whatever their case."""
    if not words:
        return
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE):
        start = len(text[: match.start()].encode())
        yield start, start + len(match[0].encode())


def _token_at(offsets: Sequence[int], byte: int) -> int:
    """Return the token whose text holds a byte; tokens without text of their own are passed over."""
    return max(0, bisect_right(offsets, byte) - 1)


def _think_end(completion: Completion, delimiter: str) -> int:
    """Return the position of the token that completes the last delimiter, or -1."""
    found = completion.text.rfind(delimiter)
    if found < 0 or not completion.offsets:
        return -1
    return _token_at(completion.offsets, len(completion.text[: found + len(delimiter)].encode()) - 1)


def _copied(answer: str, question: str) -> bool:
    """Return whether an answer is part of the question, or its words stand in it in order (Rouge-L precision)."""
    answer, question = answer.lower().strip(), question.lower()
    words = answer.split()
    return bool(words) and (answer in question or common_words(words, question.split()) > COPIED * len(words))


def common_words(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by bits of one integer (Hyyrö 2004): linear in `right`."""
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    free = whole = (1 << len(left)) - 1
    for word in right:
        hit = free & places.get(word, 0)
        free = (free + hit) | (free - hit)
    return len(left) - (free & whole).bit_count()


def _answers(completions: Sequence[Completion]) -> dict[int, int]:
    """Return the number of each completion's answer within its group, by index: equal canonical answers share one."""
    seen: dict[tuple[int, bool], dict[str, int]] = {}
    numbers = {}
    for completion in sorted(completions, key=lambda c: c.index):
        known = seen.setdefault((completion.group, completion.auxiliary), {})
        answer = completion.scored.canonical
        numbers[completion.index] = -1 if answer is None else known.setdefault(answer, len(known))
    return numbers
