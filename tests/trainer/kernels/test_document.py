"""docs/kernels.md: its example runs, and it names every argument, statistic and room there is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import torch

from trainer.kernels import ROOMS, TokenStats, linear_logprob_entropy, linear_token_loss

TEXT = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text()


def test_the_example_runs_and_its_two_contracts_agree() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(code, names)  # the manual is ours
    both = names["weight"].grad.clone()
    names["weight"].grad = None
    stats = linear_logprob_entropy(names["hidden"], names["weight"], names["target"], temperature=0.9)
    (-stats.logprob.mean() - 0.01 * stats.entropy.mean()).backward()
    torch.testing.assert_close(both, 2 * names["weight"].grad, rtol=1e-4, atol=1e-6)


def test_every_argument_statistic_and_room_is_described() -> None:
    named = set(re.findall(r"`([a-z_0-9]+)[`(]", TEXT)) | set(re.findall(r"[`, ]([a-z_0-9]+)=", TEXT))
    arguments = set(inspect.signature(linear_logprob_entropy).parameters)
    arguments |= set(inspect.signature(linear_token_loss).parameters)
    statistics = {field.name for field in fields(TokenStats)}
    assert (arguments | statistics | set(ROOMS)) - named - {"loss"} == set()
