"""The objective catalogue: found by words and facets, explained in full, pictured on request."""

from __future__ import annotations

import json
import re

import pytest

from trainer.objectives import PARTS, PRESETS
from webapp import queue
from webapp.catalog import pictures
from webapp.catalog.methods import FACETS, MethodFilter, methods
from webapp.catalog.sliders import scene_controls, sliders, span
from webapp.catalog.views_objectives import method_of
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


def read(query: str) -> MethodFilter:
    from django.http import QueryDict

    return MethodFilter.read(QueryDict(query))


def found(query: str) -> list[str]:
    return [method.name for method in read(query).select()]


def facet(name: str):
    return next(facet for facet in FACETS if facet.name == name)


def test_every_method_is_listed_once():
    assert found("") == list(PRESETS)
    assert sum(len(those) for _, those in read("").groups(read("").select())) == len(PRESETS)


def test_words_are_looked_for_in_names_papers_parts_and_texts():
    assert found("q=clip-cov")[0] == "clip-cov"
    assert found("q=2503.14476")[0] == "dapo"
    assert "clip-cov" in found("q=covariance+entropy")
    assert found("q=no+such+word+anywhere") == []
    assert set(found("q=grpo+clip")) <= set(found("q=grpo"))


def test_values_of_a_facet_are_alternatives_and_facets_add_up():
    masks, shapers = set(found("stage=token_mask")), set(found("stage=token_shaper"))
    assert set(found("stage=token_mask&stage=token_shaper")) == masks | shapers
    recent = set(found("stage=token_mask&year=2025"))
    assert recent == masks & set(found("year=2025"))
    assert 0 < len(recent) < len(PRESETS)


def test_statuses_split_the_catalogue():
    assert set(found("status=launchable")) | set(found("status=evaluation")) == set(PRESETS)
    assert not set(found("status=launchable")) & set(found("status=evaluation"))
    assert set(found("status=experimental")) == {name for name, preset in PRESETS.items() if preset.experimental}


@pytest.mark.parametrize("query", ["", "q=entropy", "stage=token_mask", "status=launchable&year=2025"])
def test_counts_tell_what_a_click_would_leave(query):
    wanted = read(query)
    for one in FACETS:
        for choice in wanted.choices(one):
            chosen = {**wanted.chosen, one.name: (choice.value,)}
            assert choice.count == len(MethodFilter(q=wanted.q, chosen=chosen).select()), (one.name, choice.value)


def test_a_filter_is_its_url():
    wanted = read("q=clip&stage=token_mask&stage=surrogate&sort=year")
    assert read(wanted.url().removeprefix("?")) == wanted
    assert read("stage=token_mask&stage=surrogate").without("stage", "surrogate") == "?stage=token_mask"
    assert read("").url() == ""
    assert read("stage=nonsense&sort=worst&year=%00").url() == ""


def test_sorted_by_year_the_newest_comes_first():
    years = [method.year for method in read("sort=year").select()]
    assert years == sorted(years, reverse=True)


def test_the_page_lists_searches_and_says_when_nothing_matches(login, alice):
    client = login(alice)
    page = client.get("/catalog/objectives/").content.decode()
    assert page.count('data-row="') == len(PRESETS)
    assert f"<strong>{len(PRESETS)}</strong> methods" in page
    assert "No method matches" in client.get("/catalog/objectives/?q=zzzzzz").content.decode()
    assert "&lt;script&gt;" in client.get("/catalog/objectives/?q=<script>").content.decode()


def test_htmx_gets_the_list_and_the_address(login, alice):
    answer = login(alice).get("/catalog/objectives/?q=dapo&sort=family", headers={"HX-Request": "true"})
    assert "<html" not in answer.content.decode()
    assert answer["HX-Replace-Url"] == "/catalog/objectives/?q=dapo"


def test_every_method_has_a_page(login, alice):
    client = login(alice)
    for method in methods():
        page = client.get(f"/catalog/objectives/{method.name}/").content.decode()
        assert method.preset.title.split("'")[0] in page
        for part in method.config.parts:
            assert f'id="part-{part.type}"' in page
        for info in method.statistics:
            assert info.help.split("'")[0] in page
        assert ("Launch with this" in page) == (not method.missing), method.name
        assert ("Experimental.</strong>" in page) == method.preset.experimental
        for info in method.missing:
            assert info.missing in page
        assert "{{" not in page
        assert "{%" not in page


def test_a_method_that_lacks_a_statistic_says_so_and_offers_evaluation(login, alice):
    lacking = next(method for method in methods() if method.missing)
    page = login(alice).get(f"/catalog/objectives/{lacking.name}/").content.decode()
    assert "No run can use this yet" in page
    assert "evaluate-objective" in page
    assert f"?preset={lacking.name}" not in page


def test_viewers_are_not_offered_a_launch(login, charlie):
    assert "Launch with this" not in login(charlie).get("/catalog/objectives/grpo/").content.decode()


def test_a_method_shows_the_runs_with_it(login, alice):
    for _ in range(2):
        Run.objects.create(name="one", owner=alice, config={}, objective="dapo")
    page = login(alice).get("/catalog/objectives/dapo/").content.decode()
    assert "All 2 runs" in page
    assert "/runs/?objective=dapo" in page
    assert "No run has used it yet" in login(alice).get("/catalog/objectives/grpo/").content.decode()


def test_an_unknown_method_is_not_found(login, alice):
    assert login(alice).get("/catalog/objectives/no-such/").status_code == 404


def test_every_part_is_a_building_block(login, alice):
    page = login(alice).get("/catalog/blocks/").content.decode()
    assert set(re.findall(r'<article class="step-part" id="(\w+)"', page)) == set(PARTS)
    used = {part["type"] for preset in PRESETS.values() for part in preset.parts}
    assert page.count("in no preset") == len(set(PARTS) - used)


def test_formulas_arrive_as_escaped_text(login, alice):
    page = login(alice).get("/catalog/blocks/").content.decode()
    for source in re.findall(r"data-formula><code>(.*?)</code>", page, re.DOTALL):
        assert not re.search(r"[<>]", source)


# -- pictures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rings(monkeypatch):
    """What was rung, instead of a worker."""
    rung = []
    monkeypatch.setattr(queue, "ring", lambda task, *args, **more: rung.append((task, args)))
    return rung


def ask(client, name: str, question) -> tuple[int, dict]:
    answer = client.post(f"/catalog/objectives/{name}/picture/", json.dumps(question), content_type="application/json")
    return answer.status_code, answer.json()


def test_a_picture_is_asked_for_once_and_kept(login, alice, rings):
    client = login(alice)
    question = {"parts": [{"type": "ppo_clip", "clip_high": 0.5}], "scene": {"log_ratio": 0.25}}
    assert ask(client, "grpo", question) == (202, {})
    assert ask(client, "grpo", question) == (202, {})
    ((task, (key, sent)),) = rings
    assert task == queue.PICTURE
    assert sent["scene"]["log_ratio"] == 0.25
    pictures.keep(key, {"drawn": True})
    assert ask(client, "grpo", question) == (200, {"picture": {"drawn": True}, "field": ""})
    assert ask(client, "grpo", {"scene": {"log_ratio": 0.5}})[0] == 202


def test_a_worker_draws_what_was_asked(login, alice, rings):
    from workers.pictures import draw

    client = login(alice)
    question = {"scene": {"across": "ratio"}}
    assert ask(client, "dapo", question)[0] == 202
    draw(*rings[0][1])
    status, body = ask(client, "dapo", question)
    assert status == 200
    assert set(body["picture"]["views"]) == {"weight", "entropy_change"}
    assert max(body["picture"]["views"]["weight"]["wrong"]) == 0


def test_what_is_wrong_is_said_beside_its_field(login, alice, rings):
    client = login(alice)
    status, body = ask(client, "grpo", {"parts": [{"type": "ppo_clip", "clip_low": 7}]})
    assert (status, body["field"].rpartition(".")[2]) == (422, "clip_low")
    status, body = ask(client, "grpo", {"scene": {"right": 2}})
    assert (status, body["field"]) == (422, "right")
    assert ask(client, "grpo", [1])[0] == 422
    assert ask(client, "grpo", {"parts": [{"type": "x" * 40_000}]})[0] == 422
    assert client.post("/catalog/objectives/grpo/picture/", "{", content_type="application/json").status_code == 400
    assert client.post("/catalog/objectives/nope/picture/", "{}", content_type="application/json").status_code == 404
    assert rings == []


def test_a_picture_that_fails_says_so(rings, login, alice, monkeypatch):
    from workers import pictures as drawer

    client = login(alice)
    ask(client, "grpo", {})
    monkeypatch.setattr(drawer, "picture", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawer.draw(*rings[0][1])
    status, body = ask(client, "grpo", {})
    assert status == 422
    assert "ZeroDivisionError" in body["problem"]


# -- controls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_slider_starts_within_its_ends(name):
    from trainer.objectives.picture import natural_scene

    method = method_of(name)
    groups = [group.controls for group in sliders(method)] + [scene_controls(method, natural_scene(method.config))]
    for control in (control for controls in groups for control in controls if control.kind == "number"):
        assert control.low <= control.value <= control.high, (name, control)
        assert control.low < control.high
        assert control.least is None or control.low >= control.least
        assert control.most is None or control.high <= control.most


def test_a_slider_explores_the_neighbourhood_of_its_value():
    assert span(0.2, 0, 100, positive=False) == (0.0, 1.0, "linear")
    assert span(0.2, 0, 1, positive=False) == (0, 1, "linear")
    low, high, scale = span(2e-4, 0, 1, positive=True)
    assert scale == "log"
    assert low < 2e-4 < high
    assert span(1.0, -1000, 1000, positive=False) == (-5.0, 5.0, "linear")
