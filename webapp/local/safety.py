"""What must hold before the site listens on more than this machine."""

from __future__ import annotations

from ipaddress import ip_address

from django.conf import settings

from webapp.accounts.models import Role, User

WEAK = ("django-insecure", "change", "secret", "password", "example")


def is_loopback(host: str) -> bool:
    return host == "localhost" or ((host.replace(".", "").isdigit() or ":" in host) and ip_address(host).is_loopback)


def refusals(host: str) -> list[str]:
    """Return one sentence for each reason not to listen on `host`; this machine alone may do as it likes."""
    if is_loopback(host):
        return []
    reasons = []
    if settings.DEBUG:
        reasons.append("ISENTROPE_DEBUG is on and shows settings and source to visitors; unset it.")
    if _weak(settings.SECRET_KEY):
        reasons.append(
            "ISENTROPE_SECRET_KEY is weak: sessions could be forged. Unset it, or make one with "
            '`python -c "import secrets; print(secrets.token_urlsafe(48))"`.'
        )
    if not User.objects.filter(role=Role.ADMIN, is_active=True).exists():
        reasons.append("There is no admin; run `python manage.py prepare` first.")
    return reasons


def _weak(key: str) -> bool:
    return len(key) < 32 or len(set(key)) < 12 or key.lower().startswith(WEAK)
