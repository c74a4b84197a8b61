"""What is compared: models, and recorded rollouts that both sides learn from."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
SPECIAL = ("<end>", "<pad>", "<unknown>")


@dataclass(frozen=True)
class Case:
    """One model and one shape of rollouts."""

    name: str
    model: str  # "random:VOCABULARY" is a Qwen2 of 4 layers and width 256; anything else is resolved by the trainer
    prompts: int = 2
    samples: int = 8
    prompt_tokens: int = 32
    completion_tokens: int = 192

    @property
    def completions(self) -> int:
        return self.prompts * self.samples


CASES = {
    case.name: case
    for case in (
        Case("qwen2-32k", "random:32768"),
        Case("qwen2-152k", "random:151936"),
        Case("smollm2", "builtin:smollm2-135m-instruct"),
        Case("tiny", "builtin:countdown-tiny", prompts=32, samples=16, prompt_tokens=8, completion_tokens=8),
    )
}

END_TO_END = {  # prompts of a whole step with sampling, by how they end
    "sums": [f"What is {7 * i % 41 + 1} + {3 * i % 9 + 1}?" for i in range(64)],
    "short": [f"Yes or no: is {7 * i % 41} larger than {3 * i % 29}?" for i in range(64)],
    "stories": [
        f"Tell me a long story about {thing}."
        for thing in (
            "a lighthouse",
            "two brothers",
            "the last train",
            "an old map",
            "a quiet robot",
            "winter",
            "the sea",
            "a lost key",
        )
    ]
    * 8,
}


def model_folder(model: str, folder: Path) -> Path:
    """Return the folder of a model in float32, made under `folder` where it is random or narrower."""
    path = folder / model.replace(":", "-")
    if (path / "config.json").is_file():
        return path
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if model.startswith("random:"):
        _random(int(model.partition(":")[2]), path)
        return path
    from trainer.models import resolve

    source = resolve(model).path
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(path)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return path


def _random(vocabulary: int, path: Path) -> None:
    """Write a Qwen2 with random weights, a tied head, and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = (*SPECIAL, *letters)
    words = [*named, *(f"t{index}" for index in range(len(named), vocabulary))]
    plain = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=SPECIAL[0], pad_token=SPECIAL[1], unk_token=SPECIAL[2]
    )
    tokenizer.save_pretrained(path)


def lengths(count: int, longest: int, fill: float) -> list[int]:
    """Return lengths whose mean is `fill` of the longest, one of them at the limit: skewed, as completions are."""
    if fill >= 1:
        return [longest] * count
    dice = random.Random(SEED)
    drawn = [dice.lognormvariate(0, 0.7) for _ in range(count - 1)]
    low, high, wanted = 0.0, float(longest) * 50, round(fill * longest * count)
    for _ in range(100):
        scale = (low + high) / 2
        found = [longest, *(min(longest, max(1, round(scale * value))) for value in drawn)]
        low, high = (scale, high) if sum(found) < wanted else (low, scale)
    dice.shuffle(found)
    return found


def rollouts(case: Case, fill: float, vocabulary: int) -> dict[str, Any]:
    """Return prompts, completions in the order of their prompts, and rewards; token ids are drawn evenly."""
    dice = random.Random(SEED + 1)
    first = min(16, vocabulary // 4)  # leaves special tokens out

    def ids(count: int) -> list[int]:
        return [dice.randrange(first, vocabulary) for _ in range(count)]

    def reward(place: int) -> float:  # every group has a right and a wrong one, so that none drops out
        return float(dice.random() < 0.5) if place > 1 else float(place)

    sizes = lengths(case.completions, case.completion_tokens, fill)
    return {
        "prompts": [ids(case.prompt_tokens) for _ in range(case.prompts)],
        "completions": [ids(size) for size in sizes],
        "rewards": [reward(index % case.samples) for index in range(len(sizes))],
        "samples": case.samples,
        "longest": case.completion_tokens,
    }


def record(case: Case, fill: float, model: Path, folder: Path) -> Path:
    """Write the rollouts of a case to a file and return it."""
    vocabulary = json.loads((model / "config.json").read_text("utf-8"))["vocab_size"]
    path = folder / f"{case.name}-{round(100 * fill)}.json"
    path.write_text(json.dumps(rollouts(case, fill, vocabulary)), "utf-8")
    return path
