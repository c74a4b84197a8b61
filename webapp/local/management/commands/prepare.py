"""`manage.py prepare`: wait for PostgreSQL, migrate, ensure an admin. Safe to repeat."""

from __future__ import annotations

import json
import time
from datetime import timedelta

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connection
from django.urls import reverse

from webapp.accounts.services import admin_ensure, login_link_create
from webapp.local.demo import demo_run_ensure

DATABASE_TIMEOUT = timedelta(minutes=1)


class Command(BaseCommand):
    help = "Wait for PostgreSQL, migrate, ensure an admin and print a login link (later only on --link)."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--demo", action="store_true", help="Also launch the demo run, unless one is under way.")
        parser.add_argument(
            "--link", action="store_true", help="Print a login link even if the admin has signed in before."
        )
        parser.add_argument("--json", action="store_true", help="Print one line of JSON instead of sentences.")

    def handle(self, *, demo: bool, link: bool, json: bool, **options) -> None:
        self._wait()
        call_command("migrate", interactive=False, verbosity=0)
        admin = admin_ensure()
        path = reverse("runs:detail", args=[demo_run_ensure(user=admin).pk]) if demo else ""
        # A container's log is read by many: the link appears there only until it has been used.
        new_link = login_link_create(user=admin, next_url=path) if json or link or admin.last_login is None else None
        demo_url = f"{settings.SITE_URL}{path}" if path else None
        self.stdout.write(
            self._json(new_link, admin.username, demo_url) if json else self._text(new_link, admin.username, demo_url)
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + DATABASE_TIMEOUT.total_seconds()
        while True:
            try:
                return connection.ensure_connection()
            except OperationalError as error:
                if time.monotonic() > deadline:
                    raise CommandError(f"DATABASE_URL: PostgreSQL does not answer ({error}).") from None
                time.sleep(1)

    def _json(self, link: str | None, user: str, demo_url: str | None) -> str:
        return json.dumps({"link": link, "user": user, "demo_url": demo_url})

    def _text(self, link: str | None, user: str, demo_url: str | None) -> str:
        lines = ["The database is ready."]
        if link:
            lines.append(f"Sign in as {user} (works once, within 24 hours): {link}")
        if demo_url:
            lines.append(f"Demo run: {demo_url}")
        return "\n".join(lines)
