"""Addresses of one run: its page, its data and what can be asked of it."""

from django.urls import path

from webapp.runs import views_actions as act
from webapp.runs import views_run as show
from webapp.runs import views_whatif as whatif

run_urls = [
    path("<str:run_id>/", show.detail, name="detail"),
    path("<str:run_id>/series/", show.series, name="series"),
    path("<str:run_id>/events/", show.events, name="events"),
    path("<str:run_id>/rollouts/", show.rollouts, name="rollouts"),
    path("<str:run_id>/rollouts/<int:step>/", show.rollout, name="rollout"),
    path("<str:run_id>/whatif/settings/", whatif.settings, name="whatif_settings"),
    path("<str:run_id>/whatif/<int:step>/", whatif.table, name="whatif"),
    path("<str:run_id>/whatif/<int:step>/tokens/", whatif.tokens, name="whatif_tokens"),
    path("<str:run_id>/log/", show.log, name="log"),
    path("<str:run_id>/checkpoints/<int:step>/", show.checkpoint, name="checkpoint"),
    path("<str:run_id>/config.toml", show.config, name="config"),
    path("<str:run_id>/launch/", act.launch, name="launch"),
    path("<str:run_id>/stop/", act.stop, name="stop"),
    path("<str:run_id>/kill/", act.kill, name="kill"),
    path("<str:run_id>/resume/", act.resume, name="resume"),
    path("<str:run_id>/duplicate/", act.duplicate, name="duplicate"),
    path("<str:run_id>/archive/", act.archive, name="archive"),
    path("<str:run_id>/unarchive/", act.unarchive, name="unarchive"),
    path("<str:run_id>/delete/", act.delete, name="delete"),
    path("<str:run_id>/rename/", act.rename, name="rename"),
    path("<str:run_id>/steer/", act.steer, name="steer"),
]
