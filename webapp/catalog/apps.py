from django.apps import AppConfig


class CatalogConfig(AppConfig):
    name = "webapp.catalog"
    label = "catalog"

    def ready(self) -> None:
        from auditlog.registry import auditlog

        from webapp.catalog.models import Dataset

        auditlog.register(Dataset)
