"""Addresses of one sweep: its page, its curves and what can be asked of it."""

from django.urls import path

from webapp.runs.sweeps import views

sweep_urls = [
    path("sweeps/<str:sweep_id>/", views.detail, name="sweep"),
    path("sweeps/<str:sweep_id>/series/", views.series, name="sweep_series"),
    path("sweeps/<str:sweep_id>/launch/", views.launch, name="sweep_launch"),
    path("sweeps/<str:sweep_id>/stop/", views.stop, name="sweep_stop"),
    path("sweeps/<str:sweep_id>/rerun/", views.rerun, name="sweep_rerun"),
    path("sweeps/<str:sweep_id>/archive/", views.archive, name="sweep_archive"),
    path("sweeps/<str:sweep_id>/unarchive/", views.unarchive, name="sweep_unarchive"),
    path("sweeps/<str:sweep_id>/delete/", views.delete, name="sweep_delete"),
    path("sweeps/<str:sweep_id>/rename/", views.rename, name="sweep_rename"),
]
