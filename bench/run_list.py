"""How fast the run list is with many runs: `python bench/run_list.py [--runs 10000] [--requests 40]`.

Starts an embedded PostgreSQL of its own in a temporary folder, seeds it, and times whole requests through Django's
handler (middleware, session, queries, template), as a signed-in member would make them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
PAGES = {
    "first page": "",
    "first page, table only": "",
    "state failed": "?state=failed",
    "search": "?q=sweep+99",
    "objective and task": "?objective=entrocraft&task=countdown",
    "tag": "?tag=seed-7",
    "sorted by reward": "?sort=-reward",
    "sorted by entropy": "?sort=entropy",
    "sorted by duration": "?sort=-duration",
    "page 300": "?page=300",
    "page 300, sorted by reward": "?sort=-reward&page=300",
}


def setup(folder: str) -> None:
    """Start PostgreSQL and Django on an empty database."""
    from webapp.local.postgres import EmbeddedPostgres

    os.environ["ISENTROPE_HOME"] = folder
    os.environ["DATABASE_URL"] = EmbeddedPostgres(Path(folder) / "postgres", volatile=True).start()
    os.environ["DJANGO_SETTINGS_MODULE"] = "webapp.settings"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def seed(count: int):
    """Make `count` runs of two members with configs, summaries and sparklines, some in sweeps; return one member."""
    from django.db import connection
    from django.utils import timezone

    from trainer.config import RunConfig
    from trainer.objectives import PRESETS
    from webapp.accounts.models import User
    from webapp.runs.models import Run, State, Sweep
    from webapp.runs.trainable import untrainable

    draw, now = random.Random(7), timezone.now()
    users = [User.objects.create_user(name, password="x", role="member") for name in ("alice", "bob")]
    presets = [name for name in PRESETS if name not in untrainable()]
    configs = {
        name: RunConfig.model_validate({"objective": {"preset": name}}).model_dump(mode="json") for name in presets
    }
    # A quarter of the runs belong to sweeps of twelve, as they stand beside each other in time.
    sweeps = {
        block: Sweep.objects.create(name=f"ablation {block}", owner=users[0], config={}, axes={})
        for block in range(0, -(-count // 12), 4)
    }
    metrics = {f"section/metric_{index}": 0.123456789 for index in range(40)}

    def run(index: int) -> Run:
        preset, created = draw.choice(presets), now - timedelta(minutes=index * 3)
        state = draw.choices(list(State), [1, 1, 1, 2, 1, 60, 10, 15, 5])[0]
        started = None if state in (State.DRAFT, State.QUEUED) else created + timedelta(seconds=9)
        curve = [round(draw.random(), 6) for _ in range(60)]
        return Run(
            name=f"sweep {index}",
            tags=draw.sample([f"seed-{n}" for n in range(20)], 2),
            owner=draw.choice(users),
            sweep=sweeps.get(index // 12),
            config=configs[preset],
            objective=preset,
            task=draw.choice(["countdown", "split_sum"]),
            model="builtin:countdown-tiny",
            state=state,
            created_at=created,
            started_at=started,
            ended_at=started and started + timedelta(minutes=draw.randint(1, 900)),
            step=draw.randint(0, 160),
            total_steps=160,
            spark_reward=curve if started else [],
            spark_entropy=curve if started else [],
            summary={**metrics, "reward/mean": draw.random(), "entropy/mean": draw.random()} if started else {},
        )

    for first in range(0, count, 1000):
        Run.objects.bulk_create(run(index) for index in range(first, min(count, first + 1000)))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return users[0]


def measure(user, requests: int) -> None:
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(user, backend="allauth.account.auth_backends.AuthenticationBackend")
    print(f"{'':28} {'p50':>8} {'p95':>8} {'queries':>8} {'kB':>6}")
    for name, query in PAGES.items():
        headers = {} if name == "first page" else {"HX-Request": "true"}
        client.get("/runs/" + query, headers=headers)
        times = []
        for _ in range(requests):
            start = time.perf_counter()
            response = client.get("/runs/" + query, headers=headers)
            times.append(1000 * (time.perf_counter() - start))
            assert response.status_code == 200
        with CaptureQueriesContext(connection) as queries:
            client.get("/runs/" + query, headers=headers)
        p95 = statistics.quantiles(times, n=20)[-1]
        size = len(response.content) / 1000
        print(f"{name:28} {statistics.median(times):6.1f}ms {p95:6.1f}ms {len(queries):8} {size:6.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setup(folder)
        from webapp.local.postgres import EmbeddedPostgres

        try:
            measure(seed(options.runs), options.requests)
        finally:
            EmbeddedPostgres(Path(folder) / "postgres").stop()


if __name__ == "__main__":
    main()
