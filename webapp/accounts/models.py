"""Members of the lab, what they may do, and one-time login links."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from django.contrib.auth.models import AbstractUser, UserManager
from django.db import models
from django.utils import timezone

LINK_LIFETIME = timedelta(hours=24)


class Role(models.TextChoices):
    """Each role may do what the ones before it may."""

    VIEWER = "viewer"
    MEMBER = "member"
    MAINTAINER = "maintainer"
    ADMIN = "admin"


RANK = {role: rank for rank, role in enumerate(Role)}

# The least role for each thing a person can do.
ABILITIES = {
    "view": Role.VIEWER,  # see runs, compare, download checkpoints
    "launch": Role.MEMBER,  # start runs; steer, stop and resume one's own
    "upload": Role.MEMBER,  # add datasets
    "manage": Role.MAINTAINER,  # act on the runs of others
    "catalog": Role.MAINTAINER,  # add models from folders and hubs
    "admin": Role.ADMIN,  # people, hosts, audit log
}


class LabUserManager(UserManager["User"]):
    def create_superuser(self, username, email=None, password=None, **fields) -> User:
        return super().create_superuser(username, email, password, **{**fields, "role": Role.ADMIN})


class User(AbstractUser):
    """A member of the lab."""

    class Theme(models.TextChoices):
        AUTO = "auto", "As the system"
        LIGHT = "light", "Light"
        DARK = "dark", "Dark"

    role = models.CharField(max_length=12, choices=Role.choices, default=Role.VIEWER)
    theme = models.CharField(max_length=5, choices=Theme.choices, default=Theme.AUTO)
    # Mail is never sent; the address only helps to tell people apart.
    email = models.EmailField(blank=True, default="")

    objects = LabUserManager()

    class Meta:
        ordering = ["username"]
        verbose_name = "user"

    def can(self, ability: str) -> bool:
        """Tell whether the role allows it; raises KeyError for an ability that does not exist."""
        return self.is_active and RANK[Role(self.role)] >= RANK[ABILITIES[ability]]

    def save(self, *args, update_fields=None, **kwargs) -> None:
        # Django's admin asks these two flags; the role decides them.
        self.is_staff = self.is_superuser = self.role == Role.ADMIN
        if update_fields is not None and "role" in update_fields:
            update_fields = {*update_fields, "is_staff", "is_superuser"}
        super().save(*args, update_fields=update_fields, **kwargs)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """Return 256 random bits for a URL."""
    return secrets.token_urlsafe(32)


def link_expiry() -> datetime:
    return timezone.now() + LINK_LIFETIME


class LoginLinkQuerySet(models.QuerySet["LoginLink"]):
    def usable(self) -> LoginLinkQuerySet:
        return self.filter(used_at=None, expires_at__gt=timezone.now(), user__is_active=True)

    def matching(self, token: str) -> LoginLinkQuerySet:
        return self.filter(token_hash=hash_token(token))


class LoginLink(models.Model):
    """Signs one person in once, within a day. Only a hash is kept: the database cannot give the link away."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="login_links")
    token_hash = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(default=link_expiry)
    used_at = models.DateTimeField(null=True, blank=True)

    objects = LoginLinkQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"login link for {self.user}"
