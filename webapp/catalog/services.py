"""Verbs on datasets.

Raise PermissionDenied for people who may not, ValidationError (one sentence) for what cannot be done.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction

from webapp.accounts.models import User
from webapp.catalog.models import Dataset
from webapp.runs.models import new_id

INSPECT_SECONDS = 150


def dataset_store(*, user: User, name: str, chunks: Iterable[bytes]) -> Dataset:
    """Write the upload to disk, look at it in a process of its own and keep it; a refused one leaves nothing behind."""
    _require_upload(user)
    name = " ".join(name.split())[:120]
    if not name:
        raise ValidationError({"name": "Give the dataset a name."})
    if Dataset.objects.filter(name__iexact=name).exists():
        raise ValidationError({"name": f"There is a dataset named “{name}” already; choose another name."})
    root = Path(settings.DATASETS_ROOT)
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f".upload-{new_id()}"
    try:
        size, digest = _write(draft, chunks)
        table = inspect_file(draft)
        path = draft.with_name(f"{new_id()}.{table['format']}")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    try:
        with transaction.atomic():
            return Dataset.objects.create(
                name=name,
                owner=user,
                path=path.name,
                bytes=size,
                sha256=digest,
                stats={key: table[key] for key in ("preview", "histograms", "checks", "warnings")},
                **{key: table[key] for key in ("format", "rows", "columns", "prompt_column", "answer_column")},
            )
    except IntegrityError as error:  # two uploads of one name at the same moment
        path.unlink(missing_ok=True)
        raise ValidationError({"name": f"There is a dataset named “{name}” already; choose another name."}) from error


def dataset_map(*, user: User, dataset: Dataset, prompt_column: str, answer_column: str) -> Dataset:
    """Say which columns are prompt and answer."""
    _require_owner(user, dataset)
    for field, column in (("prompt_column", prompt_column), ("answer_column", answer_column)):
        if column not in dataset.column_names:
            raise ValidationError(
                {field: f"There is no column “{column}”; choose one of {', '.join(dataset.column_names)}."}
            )
    if prompt_column == answer_column:
        raise ValidationError({"answer_column": "Prompt and answer must be different columns."})
    dataset.prompt_column, dataset.answer_column = prompt_column, answer_column
    dataset.save(update_fields=["prompt_column", "answer_column"])
    return dataset


def dataset_delete(*, user: User, dataset: Dataset) -> int:
    """Remove row and file; return the bytes freed. Refused while a run needs the file."""
    _require_owner(user, dataset)
    if run := dataset.in_use().first():
        raise ValidationError(f"The run “{run.name}” is {run.state} and reads this dataset; stop it first.")
    path = dataset.file
    dataset.delete()
    path.unlink(missing_ok=True)
    return dataset.bytes


def inspect_file(path: Path) -> dict[str, Any]:
    """Return what `tables` says of a file, read in a child that holds no secrets and cannot outlive its time."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(settings.BASE_DIR),
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "ARROW_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "webapp.catalog.tables", str(path)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=INSPECT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValidationError({"file": "The file takes too long to read; upload a smaller part of it."}) from error
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise ValidationError({"file": "The file could not be read; it is damaged or too large to open."}) from error
    if "problem" in answer:
        raise ValidationError({"file": answer["problem"]})
    return _storable(answer["table"])


def _storable(value: Any) -> Any:
    """Return the value without what PostgreSQL's JSON refuses: zero characters and lone surrogates."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return value


def _write(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write the upload and return its size and SHA-256; raise ValidationError above the limit or on a full disk."""
    size, digest = 0, hashlib.sha256()
    try:
        with path.open("xb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > settings.DATASET_MAX_BYTES:
                    limit = f"{settings.DATASET_MAX_BYTES >> 20} MiB"
                    raise ValidationError({"file": f"The file is larger than {limit}; upload a smaller part of it."})
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise ValidationError(
            {"file": f"The file cannot be stored ({error.strerror}); free disk space or ask an admin."}
        ) from error
    return size, digest.hexdigest()


def _require_upload(user: User) -> None:
    if not user.can("upload"):
        raise PermissionDenied(f"{user.username} may not add datasets; ask a maintainer or an admin.")


def _require_owner(user: User, dataset: Dataset) -> None:
    if not user.can("upload" if dataset.owner_id == user.pk else "manage"):
        raise PermissionDenied(f"{user.username} may not change this dataset; ask its owner or a maintainer.")
