"""Verbs on members and login links."""

from __future__ import annotations

from urllib.parse import urlencode

from django.conf import settings
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from webapp.accounts.models import LoginLink, Role, User, hash_token, new_token


def user_create(*, username: str, role: str, email: str = "") -> User:
    """Create a member without a password: the first login link lets them in, the profile page sets one."""
    user = User(username=username, role=role, email=email)
    user.set_unusable_password()
    user.save()
    return user


def admin_ensure() -> User:
    """Return an active admin, creating `admin` if the lab has none."""
    return User.objects.filter(role=Role.ADMIN, is_active=True).first() or user_create(
        username="admin", role=Role.ADMIN
    )


def login_link_create(*, user: User, created_by: User | None = None, next_url: str = "") -> str:
    """Return the full URL of a new one-time login link."""
    token = new_token()
    LoginLink.objects.create(user=user, created_by=created_by, token_hash=hash_token(token))
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    return f"{settings.SITE_URL}{reverse('accounts:login_link', args=[token])}{query}"


@transaction.atomic
def login_link_use(*, token: str) -> User | None:
    """Use the link up and return its user; None if it is unknown, used or expired."""
    link = LoginLink.objects.usable().matching(token).select_related("user").select_for_update(of=("self",)).first()
    if link is None:
        return None
    link.used_at = timezone.now()
    link.save(update_fields=["used_at"])
    return link.user


class LastAdmin(Exception):
    """The change would leave the lab without an admin."""


@transaction.atomic
def user_set_role(*, user: User, role: str, active: bool) -> None:
    """Change role and access; raises LastAdmin rather than lock everybody out."""
    # Locks every admin row, so that two admins cannot demote each other at the same moment.
    admins = list(User.objects.select_for_update().filter(role=Role.ADMIN, is_active=True))
    if admins == [user] and not (role == Role.ADMIN and active):
        raise LastAdmin(f"{user.username} is the only admin: make somebody else an admin first.")
    user.role, user.is_active = role, active
    user.save(update_fields=["role", "is_active"])
