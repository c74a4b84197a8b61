"""Settings, read from the environment (`.env.example` lists it all); a bad value stops the start with one sentence."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

BASE_DIR = Path(__file__).resolve().parent.parent


def env(name: str, default: str = "") -> str:
    """Return a variable; `NAME_FILE` names a file that holds it (container secrets)."""
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return os.environ.get(name, default)
    if not Path(path).is_file():
        raise ImproperlyConfigured(f"{name}_FILE: there is no file {path}; create it or unset {name}_FILE.")
    return Path(path).read_text().strip()


def env_bool(name: str, default: bool) -> bool:
    value = env(name).lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    if value == "":
        return default
    raise ImproperlyConfigured(f"{name}: “{value}” is neither true nor false; write 1 or 0.")


def env_int(name: str, default: int) -> int:
    value = env(name)
    if value == "":
        return default
    if not value.lstrip("-").isdigit():
        raise ImproperlyConfigured(f"{name}: “{value}” is not a whole number.")
    return int(value)


def env_list(name: str) -> list[str]:
    return [item.strip() for item in env(name).split(",") if item.strip()]


def env_paths(name: str) -> list[Path]:
    """Return folders separated as in PATH; the trainer reads the same variables (trainer/roots.py)."""
    return [Path(path).expanduser().absolute() for path in env(name).split(os.pathsep) if path.strip()]


# --- The one folder of state ---------------------------------------------------------------------------------------

ISENTROPE_HOME = Path(env("ISENTROPE_HOME", str(BASE_DIR / ".isentrope"))).expanduser().absolute()
RUNS_ROOT = Path(env("ISENTROPE_RUNS", str(ISENTROPE_HOME / "runs"))).expanduser().absolute()
DATASETS_ROOT = ISENTROPE_HOME / "datasets"
DATASET_MAX_BYTES = env_int("ISENTROPE_UPLOAD_MB", 512) * 2**20
MODELS_ROOT = ISENTROPE_HOME / "models"
# What a run may read: our own folders, and those an admin declares.
MODEL_ROOTS = [MODELS_ROOT, *env_paths("ISENTROPE_MODEL_ROOTS")]
DATASET_ROOTS = [DATASETS_ROOT, *env_paths("ISENTROPE_DATASET_ROOTS")]
LOGS_ROOT = ISENTROPE_HOME / "logs"
# Rollout servers of other machines that runs may name, HOST or HOST:PORT each; those of this machine always may.
SERVER_HOSTS = env_list("ISENTROPE_SERVER_HOSTS")


def secret_key() -> str:
    """Return the key from the environment, or the one kept (made at first use) in ISENTROPE_HOME."""
    if key := env("ISENTROPE_SECRET_KEY"):
        return key
    path = ISENTROPE_HOME / "secret_key"
    if not path.exists():
        ISENTROPE_HOME.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"secret_key.{os.getpid()}")
        with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        # link() refuses to overwrite: of two processes starting at once, one key wins.
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()


SECRET_KEY = secret_key()
DEBUG = env_bool("ISENTROPE_DEBUG", False)

# --- Where it is reached -------------------------------------------------------------------------------------------

# The address people type. Host names, trusted origins and secure cookies follow from it.
SITE_URL = env("ISENTROPE_URL", "http://127.0.0.1:8000").rstrip("/")
_site = urlsplit(SITE_URL)
if _site.scheme not in ("http", "https") or not _site.hostname:
    raise ImproperlyConfigured(f"ISENTROPE_URL: “{SITE_URL}” is no web address; write e.g. https://lab.example.org.")
ALLOWED_HOSTS = [_site.hostname, "localhost", "127.0.0.1", "[::1]", *env_list("ISENTROPE_ALLOWED_HOSTS")]
CSRF_TRUSTED_ORIGINS = [SITE_URL]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _site.scheme == "https"
# Only behind a proxy that sets X-Forwarded-Proto and X-Forwarded-Host itself.
BEHIND_PROXY = env_bool("ISENTROPE_BEHIND_PROXY", False)
if BEHIND_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    USE_X_FORWARDED_HOST = True

# --- Services: given by URL, or embedded and recorded by the launcher ----------------------------------------------


def recorded_services() -> dict[str, str]:
    """Return the URLs `manage.py up` wrote when it started the embedded services; empty before that."""
    path = ISENTROPE_HOME / "services.json"
    return json.loads(path.read_text()) if path.is_file() else {}


_services = recorded_services()
DATABASE_URL = env("DATABASE_URL") or _services.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/isentrope")
REDIS_URL = env("REDIS_URL") or _services.get("REDIS_URL", "redis://127.0.0.1:6379/0")
DATABASE_POOL = env_int("ISENTROPE_DATABASE_POOL", 12)


def database(url: str) -> dict[str, Any]:
    """Return Django's settings for a PostgreSQL URL; query parameters become libpq options."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ImproperlyConfigured(
            "DATABASE_URL: only PostgreSQL is supported; write postgresql://user:password@host/name."
        )
    parts: dict[str, Any] = conninfo_to_dict(url)
    settings: dict[str, Any] = {
        "ENGINE": "django.db.backends.postgresql",
        **{key.upper(): parts.pop(key, "") for key in ("user", "password", "host", "port")},
        "NAME": parts.pop("dbname", "isentrope"),
        "OPTIONS": parts,
    }
    if DATABASE_POOL:
        # Per process. Views, consumers and worker threads borrow a connection per request and give it back.
        settings["OPTIONS"]["pool"] = {"min_size": 0, "max_size": DATABASE_POOL, "timeout": 10, "max_idle": 60}
    return settings


DATABASES = {"default": database(DATABASE_URL)}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL, "KEY_PREFIX": "cache"}
}
# Notifications only: data goes through rows and the live stream (docs/architecture.md).
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "layer"},
    }
}

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
# A task is a doorbell: acknowledged early, never redelivered while a run of hours is under way.
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 24 * 3600,
    "socket_keepalive": True,
    "health_check_interval": 30,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_DEFAULT_QUEUE = "isentrope"
# What pages wait for is computed apart from the runs (workers/analysis.py).
CELERY_TASK_ROUTES = {"analysis.*": {"queue": "analysis"}}
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE = {
    # Expires with the next ring, so that a queue without workers stays short.
    "schedule": {"task": "runs.schedule", "schedule": 10.0, "options": {"expires": 10}},
}

# --- Django --------------------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "webapp.urls"
ASGI_APPLICATION = "webapp.asgi.application"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.humanize",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "auditlog",
    "channels",
    "csp",
    "django_filters",
    "django_htmx",
    "health_check",
    "webapp.accounts",
    "webapp.catalog",
    "webapp.runs",
    "webapp.local",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # Every page asks for a sign-in unless its view says login_not_required.
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "auditlog.middleware.AuditlogMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "webapp.context.site",
            ],
            "builtins": ["webapp.local.templatetags.ui"],
        },
    }
]
LANGUAGE_CODE = "en"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "webapp" / "static"]
# Unset: served straight from the packages, no collectstatic step. The Docker image collects and compresses.
STATIC_ROOT = env("ISENTROPE_STATIC") or None
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = STATIC_ROOT is None
WHITENOISE_AUTOREFRESH = DEBUG
DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 2**20
FILE_UPLOAD_MAX_MEMORY_SIZE = 1 * 2**20
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"

# --- Signing in ----------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_ADAPTER = "webapp.accounts.adapters.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True
SOCIALACCOUNT_ADAPTER = "webapp.accounts.adapters.SocialAccountAdapter"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = False
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_TOTP_ISSUER = "Isentrope"
# Mail is never sent: an admin hands out one-time login links instead.
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"

# Single sign-on: the lab's OpenID Connect server. New people get this role.
OIDC_URL = env("ISENTROPE_OIDC_URL")
OIDC_ROLE = env("ISENTROPE_OIDC_ROLE", "viewer")
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "lab",
                "name": env("ISENTROPE_OIDC_NAME", "Single sign-on"),
                "client_id": env("ISENTROPE_OIDC_CLIENT_ID"),
                "secret": env("ISENTROPE_OIDC_CLIENT_SECRET"),
                "settings": {"server_url": OIDC_URL},
            }
        ]
        if OIDC_URL
        else [],
    }
}
if OIDC_URL and not (env("ISENTROPE_OIDC_CLIENT_ID") and env("ISENTROPE_OIDC_CLIENT_SECRET")):
    raise ImproperlyConfigured(
        "ISENTROPE_OIDC_URL needs ISENTROPE_OIDC_CLIENT_ID and ISENTROPE_OIDC_CLIENT_SECRET; set all three or none."
    )

SESSION_COOKIE_NAME = "isentrope_session"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Scripts and styles come from files of our own: no inline code, no eval, no other host.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

AUDITLOG_INCLUDE_ALL_MODELS = False
AUDITLOG_DISABLE_REMOTE_ADDR = False

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "webapp.logs.TextFormatter"},
        "json": {"()": "webapp.logs.JsonFormatter"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "json" if env_bool("ISENTROPE_LOG_JSON", False) else "text",
        }
    },
    "root": {"handlers": ["stderr"], "level": env("ISENTROPE_LOG_LEVEL", "INFO").upper()},
    "loggers": {
        "django": {"handlers": [], "propagate": True},
        "uvicorn.access": {"level": "WARNING"},
        # The scheduler rings every 10 seconds: two lines each time would bury the rest.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        # A probe every few seconds would repeat the same trace; the endpoint's answer says it.
        "health_check": {"level": "CRITICAL"},
    },
}
