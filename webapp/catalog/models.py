"""Datasets people uploaded: a file under DATASETS_ROOT and what is known of it."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from webapp.runs.models import ALIVE, Run, State


class Format(models.TextChoices):
    JSONL = "jsonl", "JSON Lines"
    CSV = "csv", "CSV"
    TSV = "tsv", "TSV"
    PARQUET = "parquet", "Parquet"


class Dataset(models.Model):
    """One uploaded table. The file never changes; another version is another row."""

    name = models.CharField(max_length=120)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="datasets")
    path = models.CharField(max_length=200, unique=True, help_text="Relative to DATASETS_ROOT.")
    format = models.CharField(max_length=8, choices=Format.choices)
    rows = models.PositiveIntegerField()
    columns = models.JSONField(help_text="ColumnSummary of each column, in the order of the file.")
    stats = models.JSONField(default=dict, help_text="First rows, histograms of lengths, fitting checks, warnings.")
    prompt_column = models.CharField(max_length=200, blank=True, default="")
    answer_column = models.CharField(max_length=200, blank=True, default="")
    bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(Lower("name"), name="dataset_name")]

    def __str__(self) -> str:
        return self.name

    @property
    def file(self) -> Path:
        return Path(settings.DATASETS_ROOT) / self.path

    @property
    def column_names(self) -> list[str]:
        return [column["name"] for column in self.columns]

    @property
    def mapped(self) -> bool:
        """Whether runs can be launched with it: prompt and answer columns are chosen."""
        return bool(self.prompt_column and self.answer_column)

    def longest(self, column: str) -> int:
        """Return the characters of the longest cell of a column, 0 where it has none."""
        found = next((item for item in self.columns if item["name"] == column), None)
        return found["lengths"]["max"] if found and found["lengths"] else 0

    def runs(self):
        """Return the runs that read this file."""
        return Run.objects.filter(Q(config__task__path=str(self.file)) | Q(config__task__path=self.path))

    def in_use(self):
        """Return the runs that read this file now or soon."""
        return self.runs().filter(state__in=[*ALIVE, State.QUEUED])
