from django.urls import path

from webapp.catalog import views

app_name = "catalog"
urlpatterns = [
    path("models/", views.models, name="models"),
    path("datasets/", views.datasets, name="datasets"),
    path("datasets/<int:dataset_id>/", views.dataset, name="dataset"),
    path("datasets/<int:dataset_id>/columns/", views.dataset_columns, name="dataset_columns"),
    path("datasets/<int:dataset_id>/delete/", views.dataset_remove, name="dataset_delete"),
    path("objectives/", views.objectives, name="objectives"),
]
