from django.urls import path

from webapp.catalog import views, views_objectives

app_name = "catalog"
urlpatterns = [
    path("models/", views.models, name="models"),
    path("datasets/", views.datasets, name="datasets"),
    path("datasets/<int:dataset_id>/", views.dataset, name="dataset"),
    path("datasets/<int:dataset_id>/columns/", views.dataset_columns, name="dataset_columns"),
    path("datasets/<int:dataset_id>/delete/", views.dataset_remove, name="dataset_delete"),
    path("objectives/", views_objectives.objectives, name="objectives"),
    path("objectives/<slug:name>/", views_objectives.objective, name="objective"),
    path("objectives/<slug:name>/picture/", views_objectives.picture, name="picture"),
    path("blocks/", views_objectives.blocks, name="blocks"),
]
