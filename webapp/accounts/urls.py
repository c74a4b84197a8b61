from django.urls import path

from webapp.accounts import views

app_name = "accounts"
urlpatterns = [
    path("sign-in/<str:token>/", views.login_link, name="login_link"),
    path("profile/", views.profile, name="profile"),
    path("profile/theme/", views.theme, name="theme"),
    path("users/", views.users, name="users"),
    path("users/new/", views.user_new, name="user_new"),
    path("users/<int:user_id>/link/", views.user_link, name="user_link"),
    path("users/<int:user_id>/role/", views.user_role, name="user_role"),
]
