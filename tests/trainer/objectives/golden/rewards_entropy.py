"""PEAR, ARES, entropy minimisation, Confucius3: entropy in the reward, the advantage or the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch

from tests.trainer.objectives.golden import Comparison, Recording, case, same
from trainer.objectives import evaluate


@case("formula__pear")
def pear(recording: Recording) -> Iterator[Comparison]:
    inputs, alpha = recording.inputs, recording.settings["alpha"]
    correct = inputs["correct"]
    ends = [-1 if end is None else end for end in inputs["end_of_think_index"]]
    best, other = recording.settings["correct_score"], recording.settings["incorrect_format_score"]

    def reward(weight: float, right: list[float], scores: list[float]) -> torch.Tensor:
        batch = {
            "entropy": inputs["entropy"],
            "response_mask": inputs["response_mask"],
            "think_end": ends,
            "correct": right,
            "reward": scores,
        }
        found = evaluate({"preset": "pear", "parts": [{"type": "pear", "alpha": weight}]}, batch)
        return torch.tensor(found["reward"], dtype=torch.float64)

    ones, zeros = [1.0] * len(correct), [0.0] * len(correct)
    thinking, little = -reward(0.0, ones, zeros), 1e-3
    answer = (thinking + reward(little, ones, zeros)) / little  # so small that nothing is cut off at 0
    yield same("entropy of the thinking", thinking, recording.outputs["h_think"], recording.tolerance)
    yield same("entropy of the answer", answer, recording.outputs["h_answer"], recording.tolerance)
    yield same("penalty", -reward(alpha, ones, zeros), recording.outputs["penalty"], recording.tolerance)
    scores = [best if right else other for right in correct]
    yield same("reward", reward(alpha, correct, scores), recording.outputs["reward"], recording.tolerance)


COMPANIONS = {  # rewards of the others in the group that give it its difficulty
    ("easy", 1.0): [1.0],
    ("easy", 0.0): [1.0, 1.0],
    ("medium", 1.0): [0.0],
    ("medium", 0.0): [1.0],
    ("hard", 1.0): [0.0, 0.0, 0.0],
    ("hard", 0.0): [0.0],
}


@case("ares__entropy_reward")
def ares(recording: Recording) -> Iterator[Comparison]:
    def kind(pair: tuple[dict, dict]) -> tuple[float, float]:
        return pair[0]["target"], pair[0]["alpha"]

    pairs = sorted(zip(recording.inputs, recording.outputs, strict=True), key=kind)
    for (target, alpha), chosen in groupby(pairs, kind):
        given, expected = zip(*chosen, strict=True)
        correct, group, counts, first = [], [], [], []
        for number, entry in enumerate(given):
            row = [entry["correct"], *COMPANIONS[entry["difficulty"], entry["correct"]]]
            first.append(len(correct))
            correct += row
            group += [number] * len(row)
            counts += [entry["count"]] + [0] * (len(row) - 1)
        width = max(counts) + 4  # four uncertain tokens after the last trigger
        batch = {
            "logprob": [[-1.0] * width] * len(counts),
            "ref_logprob": [[-1.0] * width] * len(counts),
            "old_entropy": [[1.0] * width] * len(counts),
            "trigger": [[float(place < count) for place in range(width)] for count in counts],
            "correct": correct,
            "reward": correct,
            "group": group,
            "knobs": {f"ares_{name}": alpha for name in ("easy", "medium", "hard")} | {"trigger_entropy": 0.5},
        }
        part = {"type": "ares", "variant": "released", "target": target}
        reward = evaluate({"preset": "ares", "parts": [part]}, batch)["reward"]
        total = [reward[place] for place in first]
        score = [reward[place] - correct[place] for place in first]
        yield same("reward", total, [entry["total"] for entry in expected], recording.tolerance)
        yield same("score", score, [entry["entropy_score"] for entry in expected], recording.tolerance)


@case("formula__entropy_minimisation")
def entropy_minimisation(recording: Recording) -> Iterator[Comparison]:
    inputs, rows = recording.inputs, len(recording.inputs["entropy"])
    tokens = {"response_mask": inputs["response_mask"], "entropy": inputs["entropy"], "reward": [0.0] * rows}
    tokens["ref_logprob"] = inputs["entropy"]
    part = {"type": "confidence_reward", "no_answer": recording.settings["no_answer_penalty"]}
    found = evaluate({"preset": "rent", "parts": [part]}, {**tokens, "answer": [0] * rows})
    yield same("reward", found["reward"], recording.outputs["rent_reward"], recording.tolerance)
    silent = evaluate({"preset": "rent", "parts": [part]}, {**tokens, "answer": [-1] * rows})
    yield same("without an answer", silent["reward"], [recording.settings["no_answer_penalty"]] * rows, 0)
    heat = recording.settings["temperature"]
    logp = (torch.tensor(inputs["logits"], dtype=torch.float64) / heat).log_softmax(-1)
    tempered = -(logp.exp() * logp).sum(-1)
    part = {"type": "entropy_loss", "temperature": heat}
    found = evaluate({"preset": "em-ft", "parts": [part]}, {**tokens, "tempered_entropy": tempered.tolist()})
    yield same("loss", found["loss"], recording.outputs["em_ft_loss"], recording.tolerance)
    mask = torch.tensor(inputs["response_mask"], dtype=torch.float64)
    gradient = found["grad_extra"]["tempered_entropy"]
    yield same("entropy gradient", gradient, mask / mask.sum(), recording.tolerance)


@case("formula__confucius3")
def confucius3(recording: Recording) -> Iterator[Comparison]:
    inputs, given, expected = recording.inputs, recording.settings, recording.outputs
    part = {"type": "targeted_entropy", "target": given["target"], "coefficient": given["coef"]}
    found = evaluate({"preset": "confucius3", "parts": [part]}, inputs)
    advantage = torch.tensor(found["advantage"], dtype=torch.float64)[:, 0]
    yield same("advantage", advantage, expected["advantage"], recording.tolerance)
    centred = torch.tensor(inputs["reward"]) - torch.tensor(expected["group_mean"], dtype=torch.float64)
    yield same("hardness", advantage / centred, expected["hardness"], recording.tolerance)
    alone = evaluate({"preset": "confucius3", "parts": [part, {"type": "no_policy"}]}, inputs)
    yield same("entropy term", alone["loss"], expected["entropy_term"], recording.tolerance)
