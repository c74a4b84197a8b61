from django.apps import AppConfig


class RunsConfig(AppConfig):
    name = "webapp.runs"
    label = "runs"

    def ready(self) -> None:
        from auditlog.registry import auditlog

        from webapp.runs.models import Run, Sweep

        # What people decide; progress is written by the supervisors and would drown it.
        asked = [
            "name",
            "notes",
            "tags",
            "owner",
            "archived_at",
            "stop_requested_at",
            "kill_requested_at",
            "control_knobs",
        ]
        auditlog.register(Run, include_fields=asked)
        auditlog.register(Sweep, include_fields=["name", "owner"])
