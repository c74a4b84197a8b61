"""The request as our views see it."""

from __future__ import annotations

from django.http import HttpRequest
from django_htmx.middleware import HtmxDetails

from webapp.accounts.models import User


class Request(HttpRequest):
    """A request of a signed-in member; `htmx` is truthy when a fragment is wanted."""

    user: User
    htmx: HtmxDetails
