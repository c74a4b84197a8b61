"""`manage.py up`: everything on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from webapp.local.home import AlreadyRunning, Home
from webapp.local.launcher import Launcher, StartFailed, end_leftovers
from webapp.local.valkey import port_free

FIRST_PORT = 8000


class Command(BaseCommand):
    help = "Start PostgreSQL, Valkey, web, worker and scheduler; Ctrl-C stops them, starting again finds all data."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser) -> None:
        parser.add_argument("--demo", action="store_true", help="Launch the demo run, unless one is under way.")
        parser.add_argument("--port", type=int, help=f"Port of the site (default: the first free from {FIRST_PORT}).")

    def handle(self, *, demo: bool, port: int | None, **options) -> None:
        home = Home(settings.ISENTROPE_HOME)
        try:
            home.claim()
        except AlreadyRunning as error:
            raise CommandError(str(error)) from None
        # Before the port is chosen: what a killed launcher left behind may hold it.
        end_leftovers(home, self._say)
        launcher = self._launcher(home, self._port(port))
        launcher.heed_signals()
        try:
            self._run(launcher, demo=demo)
        except StartFailed as error:
            raise CommandError(str(error)) from None
        except ModuleNotFoundError as error:
            raise CommandError(
                f"{error.name} is not installed. Run `make install`, or set DATABASE_URL and REDIS_URL to your servers."
            ) from None
        finally:
            launcher.stop()
        self._say("Stopped. All data is kept; `make up` starts again.")

    def _launcher(self, home: Home, port: int) -> Launcher:
        # Without ISENTROPE_URL, people reach the site on this port.
        site_url = settings.SITE_URL if os.environ.get("ISENTROPE_URL") else f"http://127.0.0.1:{port}"
        home.announce(site_url)
        return Launcher(home, root=settings.BASE_DIR, site_url=site_url, port=port, say=self._say)

    def _run(self, launcher: Launcher, *, demo: bool) -> None:
        if os.geteuid() == 0 and not os.environ.get("DATABASE_URL"):
            self._say(
                "Running as root: PostgreSQL itself runs as the user pgserver, which may then enter the folders "
                f"above {launcher.home.path}."
            )
        self._say("Starting PostgreSQL, Valkey, web, worker and scheduler …")
        launcher.start_services()
        if launcher.leaving:
            return
        # Loading the site takes as long as preparing the database: side by side.
        launcher.start_web()
        prepared = launcher.prepare(demo=demo)
        launcher.start_workers()
        launcher.wait_until_ready()
        if launcher.leaving:
            return
        self._greet(launcher, **prepared)
        launcher.watch()

    def _greet(self, launcher: Launcher, *, link: str, user: str, demo_url: str | None) -> None:
        lines = [
            "",
            f"Isentrope runs at {launcher.site_url}",
            "",
            f"  Sign in as {user} (works once, within 24 hours):",
            f"  {link}",
            "",
        ]
        if demo_url:
            lines += ["  The demo run, live:", f"  {demo_url}", ""]
        lines += [f"  State and logs: {launcher.home.path}", "  Ctrl-C stops everything and keeps all data.", ""]
        self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _port(self, wanted: int | None) -> int:
        if wanted is None and os.environ.get("ISENTROPE_URL"):
            wanted = urlsplit(settings.SITE_URL).port or FIRST_PORT
        if wanted is None:
            free = next((port for port in range(FIRST_PORT, FIRST_PORT + 20) if port_free(port)), None)
            if free is None:
                raise CommandError(f"Ports {FIRST_PORT} to {FIRST_PORT + 19} are taken; choose one with --port.")
            if free != FIRST_PORT:
                self._say(f"Port {FIRST_PORT} is taken; using {free}.")
            return free
        if not port_free(wanted):
            raise CommandError(f"Port {wanted} is taken. Stop what listens there, or choose another with --port.")
        return wanted
