"""Pictures of objectives for the catalogue: a fraction of a second each, after torch is loaded."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from trainer.errors import ConfigError
from trainer.objectives import ObjectiveConfig
from trainer.objectives.picture import Scene, picture
from webapp import queue
from webapp.catalog import pictures

LIMIT = 30  # seconds


@shared_task(name=queue.PICTURE, time_limit=LIMIT)
def draw(key: str, question: dict[str, Any]) -> None:
    """Compute one picture and keep it under its key; what goes wrong becomes one sentence for the page."""
    import torch

    torch.set_num_threads(1)
    objective = ObjectiveConfig.model_validate(question["objective"])
    try:
        pictures.keep(key, picture(objective, Scene.model_validate(question["scene"])))
    except ConfigError as error:
        pictures.refuse(key, str(error))
    except Exception as error:  # whatever it is, a person waits for a sentence; the log gets the rest
        pictures.refuse(key, f"The picture failed: {type(error).__name__}. The worker's log has the details.")
        raise
