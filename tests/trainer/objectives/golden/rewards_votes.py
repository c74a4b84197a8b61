"""EMPO and EVOL-RL: rewards from the answers of a group."""

from __future__ import annotations

from collections.abc import Iterator

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate


def numbered(answers: list[str]) -> list[int]:
    """Return the number of each answer by first appearance; -1 for an empty one."""
    known = {answer: index for index, answer in enumerate(dict.fromkeys(filter(None, answers)))}
    return [known.get(answer, -1) for answer in answers]


def one_group(size: int, **given) -> dict:
    return {"logprob": [[-1.0]] * size, "reward": [0.0] * size, "group": [0] * size, **given}


@case("empo")
def empo(recording: Recording) -> Iterator[Comparison]:
    part = {"type": "empo", "variant": "released"}
    for answers, expected in zip(recording.inputs, recording.outputs, strict=True):
        inputs = one_group(len(answers), answer=numbered(answers))
        found = evaluate({"preset": "empo", "parts": [part]}, inputs)
        yield same("reward", found["reward"], expected["reward_math"], recording.tolerance)


@case("evol_rl")
def evol_rl(recording: Recording) -> Iterator[Comparison]:
    given = recording.settings
    part = {
        "type": "evol_rl",
        "label": "correct",
        "mean_weight": given["mean_weight"],
        "max_weight": given["max_weight"],
    }
    for group, expected in zip(recording.inputs, recording.outputs, strict=True):
        right = [float(base > 0) for base in group["base_reward"]]
        inputs = one_group(len(right), correct=right, embedding=group["embeddings"], trajectory=list(range(len(right))))
        inputs |= {"entropy": [[0.5]] * len(right), "ref_logprob": [[-1.0]] * len(right)}
        found = evaluate({"preset": "evol-rl", "parts": [part]}, inputs)

        yield same("reward", found["reward"], expected, recording.tolerance)
