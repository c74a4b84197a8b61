"""Loading a policy's model and tokenizer from a folder: safetensors only, no code from the folder, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.config import ModelConfig
from trainer.errors import ConfigError


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a model folder with a padding token set; raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"model.source: no usable tokenizer in {path}: {_first_line(error)}", "model.source"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: Path, dtype: str) -> Any:
    """Return the causal language model of a folder; safetensors only, no code from the folder; raises ConfigError."""
    from transformers import AutoModelForCausalLM

    try:
        # attention: torch's fused one unless the model has none, such as Gemma 2, which caps attention logits
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # broken files raise anything: safetensors' own errors, KeyError, ValueError, OSError
        if out_of_memory(error):
            raise
        raise ConfigError(
            f"model.source: {path} does not load as a causal language model ({_first_line(error).rstrip('.')}); choose "
            "another model",
            "model.source",
        ) from error


def with_lora(lm: Any, config: ModelConfig, adapter: Path | None) -> Any:
    """Put adapters into a model, fresh or from a checkpoint; raises ConfigError for unknown module names."""
    import peft

    if adapter is not None:
        return peft.PeftModel.from_pretrained(lm, adapter, is_trainable=True)
    lora = config.lora
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha,  # type: ignore[arg-type]  # floats are fine
        lora_dropout=lora.dropout, task_type="CAUSAL_LM",
        target_modules=list(lora.target_modules) or "all-linear",
    )  # fmt: skip
    try:
        return peft.get_peft_model(lm, settings)
    except ValueError as error:
        field = "model.lora.target_modules"
        raise ConfigError(f"{field}: {_first_line(error)}", field) from error


def stop_ids(lm: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token ids that end a completion."""
    declared = getattr(lm.generation_config, "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    return frozenset(index for index in [*ids, tokenizer.eos_token_id] if index is not None)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in str(error) or "out of memory" in str(error))
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
