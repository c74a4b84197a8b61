"""`manage.py serve`: the web server (uvicorn), after a look at whether it is safe to listen there."""

from __future__ import annotations

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from webapp.local.safety import refusals


class Command(BaseCommand):
    help = "Serve pages and websockets. Listens on this machine only, unless --host says otherwise."

    def add_arguments(self, parser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)

    def handle(self, *, host: str, port: int, **options) -> None:
        if reasons := refusals(host):
            raise CommandError("\n".join([f"Not listening on {host}:", *(f"- {reason}" for reason in reasons)]))
        connection.close()
        uvicorn.run(
            "webapp.asgi:application",
            host=host,
            port=port,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # X-Forwarded-* is believed only where a proxy of ours sets it.
            proxy_headers=settings.BEHIND_PROXY,
            forwarded_allow_ips="*" if settings.BEHIND_PROXY else None,
            # Browsers send small JSON messages only.
            ws_max_size=64 * 1024,
            timeout_graceful_shutdown=5,
        )
