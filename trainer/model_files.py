"""What a model folder says about itself: config.json and safetensors headers, read without torch and without trust.

Nothing of a folder is executed: weights are safetensors only (a pickle runs code when it is opened), models that bring
their own code (`auto_map`) are refused, and a header is believed only where it fits the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

MAX_JSON = 32 << 20  # bytes
MAX_HEADER = 100 << 20  # bytes, the format's own limit
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
HEADS = ("lm_head", "embed_out", "output_projection")  # output layers
UNADAPTED = (*HEADS, "embed", "wte", "wpe")  # parts of names of matrices that LoRA leaves alone
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


class ModelInfo(BaseModel):
    """A model as the form shows it; `problems` forbid its use, `notes` do not. `bytes` is the size of the weights."""

    source: str
    kind: str
    path: str | None = None
    architecture: str = ""
    parameters: int = 0
    vocabulary: int = 0
    context: int | None = None
    dtype: str = ""
    layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0  # width of the feed-forward part
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    gated: bool = False  # the feed-forward part multiplies two projections
    query_norm: bool = False  # query and key heads are normalised
    experts: bool = False
    tied: bool = False  # the output layer is the embedding
    linear_sides: dict[str, int] = {}  # inputs plus outputs of all linear layers of a name: what LoRA's size follows
    chat_template: bool = False
    bytes: int = 0
    problems: list[str] = []
    notes: list[str] = []


@dataclass(frozen=True)
class Tensor:
    """One line of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Broken(Exception):
    """A file of the folder cannot be used; the message is the sentence to show."""


def inspect_folder(path: Path, *, source: str, kind: str) -> ModelInfo:
    """Return what the folder holds; whatever forbids its use stands in `problems`, one sentence each."""
    info = ModelInfo(source=source, kind=kind, path=str(path))
    try:
        config = read_json(path / "config.json")
    except Broken as broken:
        info.problems.append(str(broken))
        return info
    _read_config(info, config)
    _refuse_code(info, path, config)
    _read_weights(info, path)
    _read_tokenizer(info, path)
    return info


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise Broken where there is none."""
    if not path.is_file():
        raise Broken(f"{path.name} is missing in {path.parent}; a model folder is what save_pretrained writes")
    if path.stat().st_size > MAX_JSON:
        raise Broken(f"{path.name} is larger than {MAX_JSON >> 20} MiB")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Broken(f"{path.name} is not valid JSON ({error}); copy the file again") from error
    if not isinstance(found, dict):
        raise Broken(f"{path.name} does not hold a JSON object")
    return found


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors a safetensors file declares; raise Broken where header and file do not fit each other."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise Broken(f"{path.name} is truncated or not a safetensors file; copy it again")
        try:
            header = json.loads(file.read(length))
            return _tensors(path, header, size - 8 - length)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Broken(f"{path.name} has a broken safetensors header; copy it again") from error


def _tensors(path: Path, header: dict[str, Any], data_bytes: int) -> dict[str, Tensor]:
    spans, found = [], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = Tensor(entry["dtype"], tuple(entry["shape"]))
        begin, end = entry["data_offsets"]
        if not all(isinstance(number, int) and number >= 0 for number in (*tensor.shape, begin, end)):
            raise ValueError(name)
        if (end - begin) * 8 != tensor.elements * BITS[tensor.dtype]:
            raise ValueError(name)
        spans.append((begin, end))
        found[name] = tensor
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("gap or overlap")
        at = end
    if at != data_bytes:
        raise Broken(f"{path.name} holds {data_bytes} bytes of weights where its header promises {at}; copy it again")
    return found


def _read_config(info: ModelInfo, config: dict[str, Any]) -> None:
    architectures = config.get("architectures")
    info.architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    nested = config.get("text_config")  # models that also see or hear keep the language part here
    text = nested if isinstance(nested, dict) else config
    info.vocabulary = _whole(text, "vocab_size") or 0
    info.context = next((found for name in CONTEXT if (found := _whole(text, name))), None)
    info.layers = _whole(text, "num_hidden_layers", "n_layer", "num_layers") or 0
    info.hidden_size = _whole(text, "hidden_size", "n_embd", "d_model") or 0
    _read_shapes(info, text)
    if not info.architecture and not config.get("model_type"):
        info.problems.append("config.json names neither architectures nor model_type, so the model cannot be built")
    if config.get("quantization_config"):
        info.problems.append("the weights are quantised; training needs the full-precision model")


def _read_shapes(info: ModelInfo, text: dict[str, Any]) -> None:
    """Note what memory follows from; what config.json leaves open stays 0."""
    info.heads = _whole(text, "num_attention_heads", "n_head", "num_heads") or 0
    info.kv_heads = _whole(text, "num_key_value_heads") or info.heads
    info.head_size = _whole(text, "head_dim") or (info.hidden_size // info.heads if info.heads else 0)
    info.intermediate_size = _whole(text, "intermediate_size", "n_inner", "ffn_dim") or 0
    if not info.intermediate_size and "n_inner" in text:  # GPT-2's null stands for this
        info.intermediate_size = 4 * info.hidden_size
    info.experts = any((_whole(text, name) or 0) > 1 for name in EXPERTS)


def _refuse_code(info: ModelInfo, path: Path, config: dict[str, Any]) -> None:
    configs = [config]
    if (path / "tokenizer_config.json").is_file():
        try:
            configs.append(read_json(path / "tokenizer_config.json"))
        except Broken as broken:
            info.problems.append(str(broken))
    if any(found.get("auto_map") for found in configs):
        info.problems.append(
            "the model brings its own Python code (auto_map), which is never run; use a model whose architecture "
            "transformers has built in"
        )


def _read_weights(info: ModelInfo, path: Path) -> None:
    try:
        files = _weight_files(path)
        tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
        _compare_with_index(path, tensors)
    except Broken as broken:
        info.problems.append(str(broken))
        return
    info.bytes = sum(file.stat().st_size for file in files)
    info.parameters = sum(tensor.elements for tensor in tensors.values())
    info.tied = not any(head in name for name in tensors for head in HEADS)
    info.gated = any("gate_proj" in name or "gate_up_proj" in name for name in tensors)
    info.query_norm = any("q_norm" in name for name in tensors)
    info.linear_sides = _linear_sides(tensors)
    sizes = Counter[str]()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.elements
    if not info.parameters:
        info.problems.append("the safetensors files hold no weights")
        return
    common = sizes.most_common(1)[0][0]
    info.dtype = DTYPES.get(common, common)


def _linear_sides(tensors: dict[str, Tensor]) -> dict[str, int]:
    found = Counter[str]()
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(".weight") and len(tensor.shape) == 2 and not any(part in name for part in UNADAPTED):
            found[layer] += sum(tensor.shape)
    return dict(found)


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
        if any(Path(name).name != name for name in names):
            raise Broken(f"{index.name} points outside the model's folder")
        missing = [name for name in names if not (path / name).is_file()]
        if missing or not names:
            raise Broken(f"{missing[0] if missing else 'every weight file'} is missing though {index.name} names it")
        return [path / name for name in names]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise Broken(
            f"the weights are pickled ({pickles[0]}), and opening a pickle runs whatever code is in it; convert them "
            "to safetensors first"
        )
    if any(path.glob("adapter_model.*")):
        raise Broken("the folder holds a LoRA adapter only; merge it into its base model first")
    raise Broken(f"model.safetensors is missing in {path}")


def _compare_with_index(path: Path, tensors: dict[str, Tensor]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    missing = [name for name in read_json(index)["weight_map"] if name not in tensors]
    if missing:
        raise Broken(f"the weight files lack {missing[0]!r} though {index.name} names it; copy them again")


def _read_tokenizer(info: ModelInfo, path: Path) -> None:
    if not any((path / name).is_file() for name in TOKENIZERS):
        info.problems.append(f"the tokenizer is missing in {path}: there is no {' or '.join(TOKENIZERS[:2])}")
    info.chat_template = (path / "chat_template.jinja").is_file()
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not info.chat_template and (path / name).is_file():
            try:
                info.chat_template = bool(read_json(path / name).get("chat_template"))
            except Broken:
                continue  # already among the problems, or optional


def _whole(config: dict[str, Any], *names: str) -> int | None:
    for name in names:
        number = config.get(name)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None
