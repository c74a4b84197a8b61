"""What a list of runs shows: read from the URL, applied to the query, written back to the URL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from django.db.models import Case, Count, Expression, ExpressionWrapper, F, FloatField, IntegerField, Q, Value, When
from django.db.models import DurationField as Duration
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Coalesce, Lower, Now
from django.http import QueryDict

from webapp.runs.models import ALIVE, RunQuerySet, State

PAGE_SIZE = 25
REWARD, ENTROPY = "reward/mean", "entropy/mean"
# The order in which a person looks for trouble: what moves, what waits, what went wrong, what is done.
STATE_ORDER = [
    *(State.STARTING, State.RUNNING, State.STOPPING, State.QUEUED, State.FAILED),
    *(State.INTERRUPTED, State.STOPPED, State.FINISHED, State.DRAFT),
]
# What the state tabs group together.
GROUPS: dict[str, tuple[str, ...]] = {
    "running": ALIVE,
    "queued": (State.QUEUED,),
    "finished": (State.FINISHED,),
    "stopped": (State.STOPPED, State.INTERRUPTED),
    "failed": (State.FAILED,),
    "draft": (State.DRAFT,),
}


def latest(metric: str) -> Cast:
    """Return the newest value of a metric; null where the run has none yet."""
    return Cast(KeyTextTransform(metric, "summary"), FloatField())


SORTS: dict[str, Expression | F] = {
    "name": Lower("name"),
    "created": F("created_at"),
    "state": Case(
        *(When(state=state, then=Value(rank)) for rank, state in enumerate(STATE_ORDER)), output_field=IntegerField()
    ),
    "step": F("step"),
    "reward": latest(REWARD),
    "entropy": latest(ENTROPY),
    "duration": ExpressionWrapper(Coalesce(F("ended_at"), Now()) - F("started_at"), output_field=Duration()),
}
FIELDS = ("q", "state", "objective", "task", "model", "owner", "tag")


@dataclass(frozen=True)
class RunFilter:
    """One view of the list; equal filters have equal URLs."""

    q: str = ""
    state: str = ""
    objective: str = ""
    task: str = ""
    model: str = ""
    owner: str = ""
    tag: str = ""
    archived: bool = False
    sort: str = "-created"
    page: int = 1

    @classmethod
    def read(cls, query: QueryDict | Mapping[str, str]) -> RunFilter:
        """Return the filter a URL asks for; what it cannot mean is ignored."""
        sort, page = query.get("sort", "-created"), query.get("page", "1")
        return cls(
            **{name: query.get(name, "").strip().replace("\x00", "")[:200] for name in FIELDS},
            archived=query.get("archived") == "1",
            sort=sort if sort.removeprefix("-") in SORTS else "-created",
            page=max(1, int(page)) if page.isdecimal() and len(page) < 8 else 1,
        )

    @property
    def narrowed(self) -> bool:
        """Whether anything is filtered out."""
        return any(getattr(self, name) for name in FIELDS)

    @property
    def states(self) -> tuple[str, ...]:
        """The states that are shown; all where nothing is chosen."""
        return GROUPS.get(self.state, (self.state,)) if self.state else tuple(State)

    def url(self, **changes: object) -> str:
        """Return the query string of this filter with `changes`; only what differs from the default is written."""
        wanted, plain = replace(self, **changes), RunFilter()  # type: ignore[arg-type]
        pairs = {name: getattr(wanted, name) for name in (*FIELDS, "archived", "sort", "page")}
        written = {
            name: "1" if value is True else value for name, value in pairs.items() if value != getattr(plain, name)
        }
        return "?" + urlencode(written)

    def sorted_by(self, column: str) -> str:
        """Return the query string that sorts by `column`: numbers downwards first, names upwards."""
        first, second = (column, f"-{column}") if column in ("name", "state") else (f"-{column}", column)
        return self.url(sort=second if self.sort == first else first, page=1)

    def everything(self, runs: RunQuerySet) -> RunQuerySet:
        """Return the runs of all states that this filter lets through."""
        runs = runs.archived() if self.archived else runs.active()
        if self.q:
            runs = runs.filter(
                Q(name__icontains=self.q) | Q(id__startswith=self.q.lower()) | Q(tags__contains=[self.q])
            )
        exact = {"objective": self.objective, "task": self.task, "model": self.model, "owner__username": self.owner}
        runs = runs.filter(**{name: value for name, value in exact.items() if value})
        return runs.filter(tags__contains=[self.tag]) if self.tag else runs

    def select(self, runs: RunQuerySet) -> RunQuerySet:
        """Return the runs of this filter, in its order; ties are broken by id so that pages never overlap."""
        runs = self.everything(runs)
        if self.state:
            runs = runs.filter(state__in=self.states)
        column, down = self.sort.removeprefix("-"), self.sort.startswith("-")
        key = SORTS[column]
        return runs.order_by(key.desc(nulls_last=True) if down else key.asc(nulls_last=True), "-id" if down else "id")


def state_counts(runs: RunQuerySet, shown: Collection[str]) -> tuple[dict[str, int], int]:
    """Return how many runs each state tab holds, and `all`; and the rows of the `shown` states, a sweep being one."""
    tabs = {name: Count("id", filter=Q(state__in=states)) for name, states in GROUPS.items()}
    rows = Count(Coalesce("sweep_id", "id"), distinct=True, filter=Q(state__in=shown))
    found = runs.order_by().aggregate(all=Count("id"), **tabs, rows=rows)
    return found, found.pop("rows")
