from django.urls import path

from webapp.runs import views_compare, views_create, views_list
from webapp.runs.sweeps.urls import sweep_urls
from webapp.runs.urls_run import run_urls

app_name = "runs"
urlpatterns = [
    path("", views_list.run_list, name="list"),
    path("bulk/", views_list.bulk, name="bulk"),
    path("demo/", views_create.demo, name="demo"),
    path("new/", views_create.create, name="create"),
    path("new/check/", views_create.check, name="create_check"),
    path("new/try/", views_create.try_out, name="create_try"),
    path("compare/", views_compare.compare, name="compare"),
    path("compare/rollouts/", views_compare.rollouts, name="compare_rollouts"),
    path("<str:run_id>/tags/", views_list.tags, name="tags"),
    *sweep_urls,
    *run_urls,
]
