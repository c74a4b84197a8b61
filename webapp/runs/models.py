"""Runs and what belongs to them. The row is the queue and the truth; raw files in the run folder are the record."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from trainer.events import RunFolder

UNRESPONSIVE_AFTER = timedelta(seconds=60)
WATCHED_AT_ONCE = 4  # groups of a run that a trainer streams because viewers ask for them


def new_id() -> str:
    """Return a short id for URLs: 8 characters from an alphabet without look-alikes."""
    return "".join(secrets.choice("23456789abcdefghjkmnpqrstuvwxyz") for _ in range(8))


class State(models.TextChoices):
    """draft → queued → starting → running → (stopping) → finished | stopped | failed | interrupted."""

    DRAFT = "draft"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


ALIVE = (State.STARTING, State.RUNNING, State.STOPPING)
ENDED = (State.FINISHED, State.STOPPED, State.FAILED, State.INTERRUPTED)


class RunQuerySet(models.QuerySet["Run"]):
    def visible_to(self, user) -> RunQuerySet:
        """Every signed-in member of the lab sees every run; strangers see none."""
        return self if user.is_authenticated else self.none()

    def active(self) -> RunQuerySet:
        return self.filter(archived_at=None)

    def archived(self) -> RunQuerySet:
        return self.exclude(archived_at=None)

    def alive(self) -> RunQuerySet:
        return self.filter(state__in=ALIVE)

    def queued(self) -> RunQuerySet:
        """The queue in order: priority, then first come first served."""
        return self.filter(state=State.QUEUED).order_by("-priority", "queued_at", "id")

    def leased_to(self, worker: str) -> RunQuerySet:
        return self.alive().filter(lease_worker=worker)

    def lease_expired(self, now) -> RunQuerySet:
        return self.alive().filter(lease_expires_at__lt=now)

    def with_watched(self) -> RunQuerySet:
        """Read along the groups that viewers ask for, first come first, as `watched`."""
        wishes = Watch.objects.filter(run=models.OuterRef("pk"), expires_at__gt=Now()).values("group")
        first = wishes.annotate(first=models.Min("since")).order_by("first", "group").values("group")
        return self.annotate(watched=ArraySubquery(first[:WATCHED_AT_ONCE]))


class SweepQuerySet(models.QuerySet["Sweep"]):
    def visible_to(self, user) -> SweepQuerySet:
        """As for runs: every signed-in member of the lab sees every sweep."""
        return self if user.is_authenticated else self.none()


class Sweep(models.Model):
    """Runs made together: objectives × values of settings × seeds. What they do is in their own rows."""

    id = models.CharField(primary_key=True, max_length=12, default=new_id, editable=False)
    name = models.CharField(max_length=120)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="sweeps")
    config = models.JSONField(help_text="The RunConfig that the members vary.")
    axes = models.JSONField(help_text="What is varied (webapp.runs.sweeps.axes.Axes).")
    created_at = models.DateTimeField(default=timezone.now)

    objects = SweepQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class Run(models.Model):
    """One run over all its attempts."""

    id = models.CharField(primary_key=True, max_length=12, default=new_id, editable=False)
    name = models.CharField(max_length=120)
    notes = models.TextField(blank=True, default="")
    tags = ArrayField(models.CharField(max_length=40), default=list, blank=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="runs")
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="copies")
    # PROTECT: a member's folder must go with its row, which only run_delete sees to.
    sweep = models.ForeignKey(Sweep, null=True, blank=True, on_delete=models.PROTECT, related_name="runs")
    member = models.JSONField(
        default=dict, blank=True, help_text="Place in the sweep (webapp.runs.sweeps.axes.Coordinates)."
    )
    config = models.JSONField(help_text="The resolved RunConfig.")
    # Denormalised from config for the run list's filters.
    objective = models.CharField(max_length=80, default="")
    task = models.CharField(max_length=80, default="")
    model = models.CharField(max_length=500, default="")

    state = models.CharField(max_length=12, choices=State.choices, default=State.DRAFT)
    priority = models.SmallIntegerField(default=0)
    gpus_wanted = models.PositiveSmallIntegerField(default=0)
    waiting_reason = models.CharField(max_length=300, blank=True, default="")
    failure = models.TextField(blank=True, default="", help_text="One sentence: cause and fix.")
    failure_field = models.CharField(max_length=200, blank=True, default="")
    failure_log = models.TextField(blank=True, default="", help_text="Last log lines of a failed attempt.")

    created_at = models.DateTimeField(default=timezone.now)
    queued_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True, help_text="Start of the newest attempt.")
    ended_at = models.DateTimeField(null=True, blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)

    # Lease of the newest attempt. Every write on its behalf is fenced by lease_token.
    attempt = models.PositiveIntegerField(default=0)
    lease_worker = models.CharField(max_length=120, blank=True, default="")
    lease_token = models.BigIntegerField(default=0, help_text="Rises with every claim.")
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    pid_started = models.FloatField(
        null=True, blank=True, help_text="Start time of the process, Unix seconds: a pid alone can be reused."
    )
    boot_id = models.CharField(
        max_length=64, blank=True, default="", help_text="Boot and pid namespace in which the pid means something."
    )

    # Requests flow down through the row.
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    kill_requested_at = models.DateTimeField(
        null=True, blank=True, help_text="End the processes without waiting for a checkpoint."
    )
    control_seq = models.PositiveIntegerField(default=0)
    control_knobs = models.JSONField(default=dict, blank=True, help_text="Latest requested value of each steered knob.")

    # Progress flows up through ingest.
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    phase = models.CharField(max_length=40, blank=True, default="")
    phase_done = models.PositiveIntegerField(default=0)
    phase_total = models.PositiveIntegerField(default=0)
    heartbeat_at = models.DateTimeField(null=True, blank=True, help_text="Last sign of life of the trainer.")
    last_seq = models.BigIntegerField(default=0, help_text="Highest ingested event.")
    events_offset = models.BigIntegerField(default=0, help_text="Bytes of events.jsonl ingested.")
    knobs = models.JSONField(
        default=dict, blank=True, help_text="Steerable knobs of the running attempt with current values."
    )
    summary = models.JSONField(default=dict, blank=True, help_text="Latest value of each metric.")
    spark_reward = models.JSONField(default=list, blank=True)
    spark_entropy = models.JSONField(default=list, blank=True)
    disk_bytes = models.BigIntegerField(default=0)

    watched: Sequence[int] = ()  # filled by `with_watched`

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["archived_at", "-created_at"], name="run_list"),
            models.Index(fields=["state"], name="run_state"),
            models.Index(fields=["owner", "-created_at"], name="run_owner"),
            models.Index(fields=["objective"], name="run_objective"),
            models.Index(fields=["name"], name="run_name"),
            GinIndex(fields=["tags"], name="run_tags"),
            # The scheduler reads only the queue, in order.
            models.Index(fields=["-priority", "queued_at"], name="run_queue", condition=Q(state=State.QUEUED)),
            # The reaper reads only leases.
            models.Index(fields=["lease_expires_at"], name="run_leases", condition=Q(state__in=ALIVE)),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(settings.RUNS_ROOT) / self.id)

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def resumable(self) -> bool:
        """Ended early, or failed, with a complete checkpoint to go on from."""
        return self.state in (State.STOPPED, State.INTERRUPTED, State.FAILED) and self.checkpoints.exists()

    @property
    def unresponsive(self) -> bool:
        """A badge, not an end: no sign of life for a while, data that arrives later is still accepted."""
        return (
            self.state == State.RUNNING
            and bool(self.heartbeat_at)
            and timezone.now() - self.heartbeat_at > UNRESPONSIVE_AFTER
        )


class Event(models.Model):
    """One line of events.jsonl."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events")
    seq = models.BigIntegerField()
    attempt = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    type = models.CharField(max_length=24)
    time = models.DateTimeField()
    data = models.JSONField(help_text="The event without seq, attempt, step, time and type.")

    class Meta:
        ordering = ["seq"]
        # Makes ingest safe to repeat.
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="event_once")]
        indexes = [models.Index(fields=["run", "type", "step"], name="event_by_type")]

    def __str__(self) -> str:
        return f"{self.run_id}#{self.seq} {self.type}"


class Checkpoint(models.Model):
    """A complete checkpoint on disk, with the metrics of its step."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="checkpoints")
    attempt = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    path = models.CharField(max_length=200, help_text="Relative to the run folder.")
    bytes = models.BigIntegerField(default=0)
    metrics = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-step"]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="checkpoint_once")]

    def __str__(self) -> str:
        return f"{self.run_id}@{self.step}"


class Request(models.Model):
    """What a person asked of a run, for the timeline: launch, steer, stop, resume, duplicate, archive."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="requests")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL)
    kind = models.CharField(max_length=20)
    data = models.JSONField(default=dict, blank=True)
    step = models.PositiveIntegerField(default=0)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["at", "id"]

    def __str__(self) -> str:
        return f"{self.kind} {self.run_id}"


class Watch(models.Model):
    """A viewer's wish to see one group of a run's steps growing; void after `expires_at` unless renewed."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="watches")
    viewer = models.CharField(max_length=40, unique=True, help_text="One open page.")
    group = models.PositiveIntegerField()
    since = models.DateTimeField(help_text="When the viewer chose this group.")
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ["since"]

    def __str__(self) -> str:
        return f"{self.run_id} group {self.group}"


class Worker(models.Model):
    """A worker process on a host; fresh while heartbeat_at is."""

    name = models.CharField(max_length=120, unique=True)
    host = models.CharField(max_length=120)
    slots = models.PositiveSmallIntegerField(default=1, help_text="CPU runs at the same time.")
    boot_id = models.CharField(max_length=64, blank=True, default="")
    started_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Gpu(models.Model):
    """One GPU of a worker; `run` holds it while leased."""

    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="gpus")
    index = models.PositiveSmallIntegerField()
    uuid = models.CharField(max_length=80, blank=True, default="")
    name = models.CharField(max_length=120, blank=True, default="")
    memory_bytes = models.BigIntegerField(default=0)
    suspect = models.BooleanField(
        default=False, help_text="Memory stayed in use after its run ended; not leased until free."
    )
    run = models.ForeignKey(Run, null=True, blank=True, on_delete=models.SET_NULL, related_name="gpus")

    class Meta:
        ordering = ["worker", "index"]
        constraints = [models.UniqueConstraint(fields=["worker", "index"], name="gpu_once")]

    def __str__(self) -> str:
        return f"{self.worker} GPU {self.index}"
