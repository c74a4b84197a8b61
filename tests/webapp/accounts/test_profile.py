"""One's own profile, the theme, and the password page."""

import pytest


def test_the_theme_is_remembered_on_every_page(login, alice):
    browser = login(alice)
    assert 'data-theme="auto"' in browser.get("/profile/").content.decode()
    assert browser.post("/profile/theme/", {"theme": "dark"}).status_code == 204
    assert 'data-theme="dark"' in browser.get("/profile/").content.decode()


def test_an_unknown_theme_is_refused(login, alice):
    assert login(alice).post("/profile/theme/", {"theme": '"><script>'}).status_code == 400
    alice.refresh_from_db()
    assert alice.theme == "auto"


def test_a_name_of_html_is_text(login, alice):
    browser = login(alice)
    answer = browser.post("/profile/", {"first_name": "<script>alert(1)</script>", "theme": "auto"}, follow=True)
    assert "<script>alert" not in answer.content.decode()


def test_nobody_gives_themselves_a_role(login, alice):
    login(alice).post("/profile/", {"role": "admin", "is_superuser": "on", "theme": "light"})
    alice.refresh_from_db()
    assert (alice.role, alice.is_superuser, alice.theme) == ("member", False, "light")


@pytest.mark.parametrize("path", ["/accounts/login/", "/accounts/password/reset/"])
def test_pages_for_strangers(client, db, path):
    assert client.get(path).status_code == 200


def test_nobody_signs_up(client, db):
    page = client.post(
        "/accounts/signup/", {"username": "eve", "password1": "a-long-phrase-1", "password2": "a-long-phrase-1"}
    )
    assert "closed" in page.content.decode().lower()
    assert not page.wsgi_request.user.is_authenticated


def test_a_password_signs_in(client, alice):
    answer = client.post("/accounts/login/", {"login": "alice", "password": "alice-pass-phrase"})
    assert answer.status_code == 302
    assert client.get("/profile/").context["user"] == alice


def test_a_wrong_password_says_so_and_guessing_is_slowed(client, alice):
    answers = [client.post("/accounts/login/", {"login": "alice", "password": f"guess-{n}"}) for n in range(12)]
    assert "not correct" in answers[0].content.decode()
    late = answers[-1]
    assert late.status_code == 429 or "Too many" in late.content.decode()


@pytest.mark.parametrize("path", ["/accounts/2fa/", "/accounts/password/change/", "/accounts/2fa/totp/activate/"])
def test_account_pages_wear_our_layout(login, alice, path):
    answer = login(alice).get(path, follow=True)
    assert answer.status_code == 200
    assert "skip-link" in answer.content.decode()
