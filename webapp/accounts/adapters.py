"""What allauth asks of us: nobody signs up by themselves, except through the lab's single sign-on."""

from __future__ import annotations

from allauth.account.adapter import DefaultAccountAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.http import HttpRequest

from webapp.accounts.models import User


class AccountAdapter(DefaultAccountAdapter):
    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False


class SocialAccountAdapter(DefaultSocialAccountAdapter):
    def is_open_for_signup(self, request: HttpRequest, sociallogin) -> bool:
        return bool(settings.OIDC_URL)

    def new_user(self, request: HttpRequest, sociallogin) -> User:
        user = super().new_user(request, sociallogin)
        user.role = settings.OIDC_ROLE
        return user
