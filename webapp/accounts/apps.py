from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "webapp.accounts"
    label = "accounts"

    def ready(self) -> None:
        from auditlog.registry import auditlog
        from django.contrib import admin

        from webapp.accounts.models import LoginLink, User
        from webapp.accounts.views import admin_login

        # One door for signing in: rate limits and second factors hold for Django's admin too.
        admin.site.login = admin_login
        auditlog.register(User, exclude_fields=["last_login", "password"])
        auditlog.register(LoginLink, exclude_fields=["token_hash"])
