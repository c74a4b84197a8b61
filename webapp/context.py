"""What every template may use."""

from __future__ import annotations

from django.http import HttpRequest

THEMES = ("auto", "light", "dark")


def site(request: HttpRequest) -> dict[str, object]:
    """Return the theme chosen by this member; strangers follow their system."""
    user = getattr(request, "user", None)
    return {"theme": user.theme if user is not None and user.is_authenticated else "auto", "themes": THEMES}
