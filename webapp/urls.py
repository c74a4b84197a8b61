from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from webapp import health
from webapp.accounts import views as accounts

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="runs:list"), name="home"),
    path("runs/", include("webapp.runs.urls")),
    path("catalog/", include("webapp.catalog.urls")),
    path("", include("webapp.accounts.urls")),
    # No mail is sent, so a forgotten password is an admin's job; this hides allauth's page.
    path("accounts/password/reset/", accounts.forgotten, name="account_reset_password"),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("health/startup", health.startup),
]
