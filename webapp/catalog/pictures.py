"""Pictures of objectives: asked for here, computed by a worker (torch lives there), kept in the cache."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from django.core.cache import cache as store
from pydantic import ValidationError

import trainer.objectives
from trainer.config import errors_of
from trainer.errors import ConfigError
from trainer.objectives import ObjectiveConfig
from trainer.objectives.picture import Scene
from webapp import queue

KEEP_SECONDS = 7 * 24 * 3600
REFUSE_SECONDS = 60
ASK_AGAIN_SECONDS = 15  # a question nobody answered is asked once more after this


def read(preset: str, question: Any) -> tuple[ObjectiveConfig, Scene]:
    """Return the objective and the scene of a question {parts, scene}; raise ConfigError naming the wrong field."""
    if not isinstance(question, dict) or not question.keys() <= {"parts", "scene"}:
        raise ConfigError("Send an object with parts and scene.")
    try:
        config = ObjectiveConfig.model_validate({"preset": preset, "parts": question.get("parts", [])})
        return config, Scene.model_validate(question.get("scene", {}))
    except ValidationError as error:
        field, message = next(iter(errors_of(error).items()))
        raise ConfigError(message[:1].upper() + message[1:] + ".", field) from error


def picture_of(config: ObjectiveConfig, scene: Scene) -> dict[str, Any] | None:
    """Return {"picture"} or {"problem"} of an objective on a scene; None while a worker is still at it."""
    question = {"objective": config.model_dump(mode="json"), "scene": scene.model_dump(mode="json")}
    key = f"picture:{_digest(question)}"
    if found := store.get(key):
        return found
    if store.add(f"{key}:asked", True, ASK_AGAIN_SECONDS):
        queue.ring(queue.PICTURE, key, question)
    return None


def keep(key: str, picture: dict[str, Any]) -> None:
    """Store a worker's picture."""
    store.set(key, {"picture": picture}, KEEP_SECONDS)


def refuse(key: str, problem: str) -> None:
    """Store for a while why there is no picture."""
    store.set(key, {"problem": problem}, REFUSE_SECONDS)


def _digest(question: dict[str, Any]) -> str:
    text = json.dumps(question, sort_keys=True) + _code()
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """Return a digest of the objectives' source: a changed formula makes new pictures."""
    files = sorted(Path(trainer.objectives.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
