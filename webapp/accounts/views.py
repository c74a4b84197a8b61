"""Signing in by link, one's own profile, and the people page of admins."""

from __future__ import annotations

from functools import wraps

from allauth.account.decorators import secure_admin_login
from allauth.account.utils import perform_login
from django.contrib import admin, messages
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from webapp.accounts.forms import ProfileForm, RoleForm, UserForm
from webapp.accounts.models import ABILITIES, LoginLink, Role, User
from webapp.accounts.services import LastAdmin, login_link_create, login_link_use, user_create, user_set_role
from webapp.http import Request

admin_login = secure_admin_login(admin.site.login)


def ability_required(ability: str):
    """Refuse, with a page that says why, members whose role does not allow it."""

    def decorate(view):
        @wraps(view)
        def guarded(request: Request, *args, **kwargs) -> HttpResponse:
            if not request.user.can(ability):
                raise PermissionDenied(f"This needs the role {ABILITIES[ability]}; yours is {request.user.role}.")
            return view(request, *args, **kwargs)

        return guarded

    return decorate


@login_not_required
@never_cache
@sensitive_variables("token")
@require_http_methods(["GET", "POST"])
def login_link(request: HttpRequest, token: str) -> HttpResponse:
    """Sign in with a one-time link. Looking at the page uses nothing up: mail scanners and prefetchers only look."""
    next_url = request.GET.get("next", "")
    if not url_has_allowed_host_and_scheme(next_url, allowed_hosts={request.get_host()}):
        next_url = "/"
    if request.method == "POST":
        user = login_link_use(token=token)
        if user is not None:
            return perform_login(request, user, email_verification="none", redirect_url=next_url)
    usable = LoginLink.objects.usable().matching(token).select_related("user").first()
    context = {"person": usable.user if usable else None}
    response = render(request, "accounts/login_link.html", context, status=200 if usable else 410)
    # The token stands in the address: it must not travel on in a Referer header. (With "no-referrer" browsers would
    # also send "Origin: null", which the CSRF check refuses.)
    response["Referrer-Policy"] = "strict-origin"
    return response


@login_not_required
@require_GET
def forgotten(request: HttpRequest) -> HttpResponse:
    return render(request, "accounts/forgotten.html")


@require_http_methods(["GET", "POST"])
def profile(request: Request) -> HttpResponse:
    form = ProfileForm(request.POST or None, instance=request.user)
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, "Profile saved.")
        return redirect("accounts:profile")
    return render(request, "accounts/profile.html", {"form": form})


@require_POST
def theme(request: Request) -> HttpResponse:
    """Remember the theme chosen by the switch in the navigation."""
    choice = request.POST.get("theme", "")
    if choice not in User.Theme.values:
        return HttpResponse("theme: choose auto, light or dark.", status=400)
    request.user.theme = choice
    request.user.save(update_fields=["theme"])
    return HttpResponse(status=204)


@require_GET
@ability_required("admin")
def users(request: Request) -> HttpResponse:
    return _users_page(request)


@require_POST
@ability_required("admin")
def user_new(request: Request) -> HttpResponse:
    form = UserForm(request.POST)
    if not form.is_valid():
        return _users_page(request, form=form, status=422)
    user = user_create(**form.cleaned_data)
    return _users_page(request, link_for=user, link=login_link_create(user=user, created_by=request.user))


@require_POST
@ability_required("admin")
def user_link(request: Request, user_id: int) -> HttpResponse:
    user = get_object_or_404(User, pk=user_id, is_active=True)
    return _users_page(request, link_for=user, link=login_link_create(user=user, created_by=request.user))


@require_POST
@ability_required("admin")
def user_role(request: Request, user_id: int) -> HttpResponse:
    user = get_object_or_404(User, pk=user_id)
    form = RoleForm(request.POST)
    if not form.is_valid():
        messages.error(request, f"role: choose one of {', '.join(Role.values)}.")
        return redirect("accounts:users")
    try:
        user_set_role(user=user, role=form.cleaned_data["role"], active=form.cleaned_data["active"])
    except LastAdmin as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{user.username} saved.")
    return redirect("accounts:users")


def _users_page(request: Request, *, form: UserForm | None = None, status: int = 200, **extra) -> HttpResponse:
    context = {
        "people": User.objects.all(),
        "roles": Role.choices,
        "form": form or UserForm(initial={"role": Role.MEMBER}),
        **extra,
    }
    response = render(request, "accounts/users.html", context, status=status)
    # A page that shows a login link is not kept by the browser.
    response["Cache-Control"] = "no-store"
    return response
