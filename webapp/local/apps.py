from django.apps import AppConfig


class LocalConfig(AppConfig):
    name = "webapp.local"
    label = "local"
