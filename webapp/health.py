"""Health endpoints for orchestrators: live (the process answers), ready (its services answer), startup (migrated)."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.decorators import method_decorator
from health_check.base import HealthCheck
from health_check.contrib.redis import Redis
from health_check.exceptions import ServiceUnavailable, ServiceWarning
from health_check.views import HealthCheckView
from redis.asyncio import Redis as RedisClient

WORKER_SILENT_AFTER = timedelta(seconds=60)


def _redis() -> RedisClient:
    return RedisClient.from_url(settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=2)


# The package's own database check runs in a free thread, whose connection would never go back to the pool;
# sync_to_async runs in the request's thread.
@dataclasses.dataclass
class Database(HealthCheck):
    """PostgreSQL answers."""

    async def run(self) -> None:
        try:
            await sync_to_async(self._select)()
        except DatabaseError as error:
            raise ServiceUnavailable("PostgreSQL does not answer; see DATABASE_URL.") from error

    @staticmethod
    def _select() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")


@dataclasses.dataclass
class Migrated(HealthCheck):
    """Every migration is applied."""

    async def run(self) -> None:
        if await sync_to_async(self._waiting)():
            raise ServiceUnavailable("Migrations are waiting; run `python manage.py migrate`.")

    @staticmethod
    def _waiting() -> bool:
        executor = MigrationExecutor(connection)
        return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


@dataclasses.dataclass
class Worker(HealthCheck):
    """A worker has reported within a minute; the site works without one, runs only wait."""

    async def run(self) -> None:
        from webapp.runs.models import Worker as WorkerRow

        newest = await sync_to_async(lambda: WorkerRow.objects.order_by("-heartbeat_at").first())()
        if newest is None or timezone.now() - newest.heartbeat_at > WORKER_SILENT_AFTER:
            raise ServiceWarning(
                "No worker has reported within a minute: runs wait. Start one with `celery -A workers.app worker`."
            )


@login_not_required
def live(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"status": "ok"})


@method_decorator(login_not_required, name="dispatch")
class Health(HealthCheckView):
    """JSON: {check: {status, detail}}; 503 if a check fails, 200 with status "warning" if one only warns."""

    async def get(self, request: HttpRequest, *args, **kwargs) -> HttpResponse:
        with self.get_executor() as executor:
            results = [await check.get_result(executor) for check in self.get_checks()]
        body, status = {}, 200
        for result in results:
            warning = isinstance(result.error, ServiceWarning)
            state = "ok" if result.error is None else "warning" if warning else "error"
            body[type(result.check).__name__.lower()] = {"status": state, "detail": str(result.error or "")}
            if state == "error":
                status = 503
        return JsonResponse(body, status=status)


ready = Health.as_view(checks=[Database, (Redis, {"client_factory": _redis}), Worker])
startup = Health.as_view(checks=[Database, Migrated])
