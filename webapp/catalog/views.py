"""The catalogue: models that can be trained, datasets people uploaded."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Sum
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from trainer.rewards import REWARDS
from webapp.catalog import services
from webapp.catalog.models import Dataset
from webapp.http import Request
from webapp.runs.checks import catalogue
from webapp.runs.templatetags.lists import size

PER_PAGE = 50


@require_GET
def models(request: Request) -> HttpResponse:
    """Show every model that can be trained, broken ones with what is wrong."""
    return render(request, "catalog/models.html", {"models": catalogue()})


@require_http_methods(["GET", "POST"])
def datasets(request: Request) -> HttpResponse:
    """List datasets; on POST take an upload. A script gets the address to go to, a plain form is sent there."""
    if request.method == "GET":
        return render(request, "catalog/datasets.html", _listed())
    if not request.user.can("upload"):
        raise PermissionDenied(f"{request.user.username} may not add datasets; ask a maintainer or an admin.")
    upload = request.FILES.get("file")
    if upload is None:
        return _refused(request, {"file": "Choose a JSONL, CSV, TSV or Parquet file."})
    name = request.POST.get("name", "").strip() or (upload.name or "").rpartition(".")[0]
    try:
        found = services.dataset_store(user=request.user, name=name, chunks=upload.chunks())
    except ValidationError as error:
        return _refused(request, {field: " ".join(texts) for field, texts in error.message_dict.items()})
    url = reverse("catalog:dataset", args=[found.pk])
    return HttpResponse(status=201, headers={"Location": url}) if _scripted(request) else redirect(url)


def _listed() -> dict[str, Any]:
    found = Dataset.objects.select_related("owner").defer("stats", "columns")
    return {"datasets": found[:PER_PAGE], "used": found.aggregate(total=Sum("bytes"))["total"] or 0, "errors": {}}


def _refused(request: Request, errors: dict[str, str]) -> HttpResponse:
    context = _listed() | {"errors": errors, "name": request.POST.get("name", "")}
    template = "catalog/_upload_errors.html" if _scripted(request) else "catalog/datasets.html"
    return render(request, template, context, status=422)


def _scripted(request: Request) -> bool:
    return request.headers.get("X-Requested-With") == "XMLHttpRequest"


@require_GET
def dataset(request: Request, dataset_id: int) -> HttpResponse:
    """Show one dataset: first rows, columns, lengths, mapping."""
    return _dataset_page(request, get_object_or_404(Dataset.objects.select_related("owner"), pk=dataset_id))


def _dataset_page(request: Request, found: Dataset, errors: dict[str, str] | None = None) -> HttpResponse:
    names = found.column_names
    check = found.stats.get("checks", {}).get(found.answer_column, "")
    context = {
        "dataset": found,
        "rows": [[row.get(name) for name in names] for row in found.stats.get("preview", [])],
        "lengths": [(column, found.stats.get("histograms", {}).get(column["name"])) for column in found.columns],
        "reward": REWARDS[check] if check in REWARDS else REWARDS["task"],
        "runs": found.runs().only("id", "name", "state")[:20],
        "mine": request.user.can("upload" if found.owner_id == request.user.pk else "manage"),
        "errors": errors or {},
    }
    return render(request, "catalog/dataset.html", context, status=422 if errors else 200)


@require_POST
def dataset_columns(request: Request, dataset_id: int) -> HttpResponse:
    """Say which columns are prompt and answer."""
    found = get_object_or_404(Dataset, pk=dataset_id)
    prompt, answer = request.POST.get("prompt_column", ""), request.POST.get("answer_column", "")
    try:
        services.dataset_map(user=request.user, dataset=found, prompt_column=prompt, answer_column=answer)
    except ValidationError as error:
        return _dataset_page(request, found, {field: " ".join(texts) for field, texts in error.message_dict.items()})
    messages.success(request, "Columns saved.")
    return redirect("catalog:dataset", found.pk)


@require_POST
def dataset_remove(request: Request, dataset_id: int) -> HttpResponse:
    """Delete a dataset and free its disk, unless a run needs it."""
    found = get_object_or_404(Dataset, pk=dataset_id)
    try:
        freed = services.dataset_delete(user=request.user, dataset=found)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("catalog:dataset", dataset_id)
    messages.success(request, f"Deleted {found.name}; {size(freed)} are free again.")
    return redirect("catalog:datasets")
