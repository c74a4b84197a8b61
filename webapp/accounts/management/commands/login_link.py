"""`manage.py login_link USER`: print a one-time login link."""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError

from webapp.accounts.models import User
from webapp.accounts.services import admin_ensure, login_link_create


class Command(BaseCommand):
    help = "Print a link that signs USER in once, within 24 hours. Default: the first admin, made if there is none."

    def add_arguments(self, parser) -> None:
        parser.add_argument("username", nargs="?")
        parser.add_argument("--next", default="", help="Page to open after signing in.")

    def handle(self, *, username: str | None, next: str, **options) -> None:
        self.stdout.write(login_link_create(user=self._user(username), next_url=next))

    def _user(self, username: str | None) -> User:
        if username is None:
            return admin_ensure()
        user = User.objects.filter(username=username, is_active=True).first()
        if user is None:
            names = ", ".join(User.objects.filter(is_active=True).values_list("username", flat=True)[:20])
            raise CommandError(f"There is no active user “{username}”. There are: {names or 'none yet'}.")
        return user
