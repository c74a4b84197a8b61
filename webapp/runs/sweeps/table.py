"""A sweep as a table: a row for each objective and its values, a column for each seed, figures over the seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import ValidationError

from webapp.runs.data import EVALUATION
from webapp.runs.filters import ENTROPY, REWARD, latest
from webapp.runs.models import ALIVE, Run, State, Sweep
from webapp.runs.sweeps.axes import Axes, Coordinates, short_names, write_seeds

COLOURS, DASHES = 8, 4
# What a table reads of each run; the large JSON columns stay in the database.
COLUMNS = (
    "id", "name", "state", "sweep_id", "member", "step", "total_steps", "summary", "failure", "waiting_reason",
    "heartbeat_at", "started_at", "ended_at", "created_at", "archived_at", "disk_bytes",
)  # fmt: skip
# The words of a progress bar, what is done first.
WORDS: dict[str, tuple[str, ...]] = {
    "finished": (State.FINISHED,),
    "running": ALIVE,
    "queued": (State.QUEUED,),
    "failed": (State.FAILED,),
    "interrupted": (State.INTERRUPTED,),
    "stopped": (State.STOPPED,),
    "draft": (State.DRAFT,),
}
NAMES = {REWARD: "Reward", ENTROPY: "Entropy"}


@dataclass(frozen=True)
class Figure:
    """A metric over the seeds of one row: mean, lowest and highest of the `count` runs that have it."""

    mean: float
    low: float
    high: float
    count: int


@dataclass
class Column:
    """A metric of one row; `best` marks the highest mean among the rows."""

    value: Figure | None
    best: bool = False


@dataclass
class Row:
    """Runs that differ in their seed alone, in the order of the seeds; None where the run is gone."""

    objective: str
    values: list[str]
    runs: list[Run | None]
    colour: int = 1
    dash: int = 0
    figures: list[Column] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return the row's name in a legend."""
        return " · ".join([self.objective, *(value for value in self.values if value)])


@dataclass
class Table:
    """`metrics` are names and `headings` what stands above their columns."""

    seeds: list[int]
    parameters: list[tuple[str, str]]
    metrics: list[str]
    rows: list[Row]

    @property
    def headings(self) -> list[str]:
        return [NAMES.get(name, name.removeprefix(EVALUATION)) for name in self.metrics]

    @cached_property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs if run is not None]

    @property
    def width(self) -> int:
        return 1 + len(self.parameters) + len(self.metrics) + len(self.seeds)


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: [(word, runs)] of what there is, steps done and planned."""

    counts: list[tuple[str, int]]
    step: int
    total_steps: int

    @property
    def alive(self) -> bool:
        return any(word in ("running", "queued") for word, _ in self.counts)

    def count(self, word: str) -> int:
        return dict(self.counts).get(word, 0)

    @property
    def shares(self) -> list[tuple[str, float, float]]:
        """Return [(word, start, width)] of a bar 100 wide."""
        total, start, found = sum(count for _, count in self.counts) or 1, 0.0, []
        for word, count in self.counts:
            found.append((word, round(start, 2), round(100 * count / total, 2)))
            start += 100 * count / total
        return found


def progress(states: dict[str, int], step: int, total_steps: int) -> Progress:
    """Return the progress of runs counted by state, in the order of `WORDS`."""
    counts = [(word, sum(states.get(state, 0) for state in of)) for word, of in WORDS.items()]
    return Progress([(word, count) for word, count in counts if count], step, total_steps)


def progress_of(runs: Sequence[Run]) -> Progress:
    states = Counter(run.state for run in runs)
    return progress(states, sum(run.step for run in runs), sum(run.total_steps for run in runs))


def members(sweeps: Iterable[str]) -> list[Run]:
    """Return the runs of sweeps with what a table shows."""
    runs = Run.objects.filter(sweep__in=list(sweeps)).only(*COLUMNS).annotate(reward=latest(REWARD))
    return list(runs.order_by("created_at", "id"))


def open_tables(ids: Sequence[str]) -> dict[str, Table]:
    """Return the tables of some sweeps by their ids; two queries, none for none."""
    if not ids:
        return {}
    runs = members(ids)
    sweeps = Sweep.objects.only("id", "axes").in_bulk(ids)
    return {key: table(sweep, [run for run in runs if run.sweep_id == key]) for key, sweep in sweeps.items()}


def table(sweep: Sweep, runs: Iterable[Run]) -> Table:
    """Return the runs by objective, values and seed, in the order in which the axes name them."""
    axes = Axes.model_validate(sweep.axes)
    placed = [(place, run) for run in runs if (place := coordinates(run)) is not None]
    seeds = sorted({place.seed for place, _ in placed}, key=lambda seed: _rank(axes.seeds, seed))
    paths = [parameter.path for parameter in axes.parameters]
    cells: dict[tuple[str, tuple[tuple[str, str], ...]], dict[int, Run]] = {}
    for place, run in placed:
        cells.setdefault(place.cell, {})[place.seed] = run
    found = []
    for objective, values in sorted(cells, key=lambda cell: _order(axes, *cell)):
        by_seed, chosen = cells[objective, values], dict(values)
        found.append(Row(objective, [chosen.get(path, "") for path in paths], [by_seed.get(seed) for seed in seeds]))
    names = short_names(tuple(paths))
    result = Table(seeds, [(path, names[path]) for path in paths], _metrics(found), found)
    for index, row in enumerate(result.rows):
        row.colour, row.dash = index % COLOURS + 1, index // COLOURS % DASHES
        row.figures = [Column(figure(row.runs, name)) for name in result.metrics]
    _mark_best(result)
    return result


def coordinates(run: Run) -> Coordinates | None:
    try:
        return Coordinates.model_validate(run.member)
    except ValidationError:
        return None


def figure(runs: Iterable[Run | None], metric: str) -> Figure | None:
    """Return the newest value of a metric over the runs, None where none has it."""
    values = [run.summary.get(metric) for run in runs if run is not None]
    known = [float(value) for value in values if isinstance(value, int | float)]
    return Figure(sum(known) / len(known), min(known), max(known), len(known)) if known else None


def described(axes: Axes) -> list[str]:
    """Return the axes in words, for people: `4 objectives`, `seeds 0-2`, `learning_rate 1e-5, 3e-5`."""
    objectives = 1 + len(axes.presets)
    names = short_names(tuple(parameter.path for parameter in axes.parameters))
    return [
        f"{objectives} objective{'s' if objectives > 1 else ''}",
        f"seed{'s' if len(axes.seeds) > 1 else ''} {write_seeds(axes.seeds)}",
        *(f"{names[parameter.path]} {', '.join(parameter.values)}" for parameter in axes.parameters),
    ]


def _metrics(rows: Iterable[Row]) -> list[str]:
    """Return reward, entropy and one figure of the evaluation, if there is one: what a league is read by."""
    known = {name for row in rows for run in row.runs if run is not None for name in run.summary}
    passes = {int(k): name for name in known if (k := name.removeprefix(f"{EVALUATION}pass@")).isdecimal()}
    return [REWARD, ENTROPY, *([passes[max(passes)]] if passes else [])]


def _mark_best(result: Table) -> None:
    """Mark the highest reward and evaluation of several rows; no entropy is the best."""
    for at, name in enumerate(result.metrics):
        columns = [row.figures[at] for row in result.rows]
        means = [column.value.mean for column in columns if column.value]
        if name == ENTROPY or len(set(means)) < 2:
            continue
        for column in columns:
            column.best = column.value is not None and column.value.mean == max(means)


def _order(axes: Axes, objective: str, values: tuple[tuple[str, str], ...]) -> tuple[object, ...]:
    # The present objective is no preset of the axes and comes first.
    chosen = dict(values)
    places = [_rank(parameter.values, chosen.get(parameter.path, "")) for parameter in axes.parameters]
    return axes.presets.index(objective) if objective in axes.presets else -1, objective, places


def _rank(known: Sequence[object], value: object) -> int:
    return known.index(value) if value in known else len(known)
