"""Which group of a running step a viewer wants to see growing: a row for each open page, renewed while it is open.

The worker writes the groups of all living wishes into control.json, where the trainer finds them while it samples.
"""

from __future__ import annotations

from datetime import timedelta

from django.db.models.functions import Now

from webapp.runs.models import WATCHED_AT_ONCE, Run, Watch

WISH = timedelta(seconds=30)  # a page that vanished without a word is forgotten after this


def watch(run_id: str, viewer: str, group: int) -> str:
    """Ask for a group, or renew the wish; return why it cannot be shown now, or nothing.

    A wish beyond what a trainer streams at once is kept and granted when another viewer leaves.
    """
    Watch.objects.filter(run_id=run_id, expires_at__lte=Now()).delete()
    renewed = Watch.objects.filter(viewer=viewer, group=group).update(expires_at=Now() + WISH)
    if not renewed:
        Watch.objects.update_or_create(
            viewer=viewer, defaults={"run_id": run_id, "group": group, "since": Now(), "expires_at": Now() + WISH}
        )
    granted = Run.objects.with_watched().values_list("watched", flat=True).get(pk=run_id)
    if group in granted:
        return ""
    others = ", ".join(str(number) for number in sorted(granted))
    return (
        f"Other viewers watch {WATCHED_AT_ONCE} prompts already (numbers {others}), as many as are streamed at once. "
        "Choose one of those; yours follows when somebody leaves."
    )


def forget(viewer: str) -> None:
    """Drop a page's wish."""
    Watch.objects.filter(viewer=viewer).delete()
