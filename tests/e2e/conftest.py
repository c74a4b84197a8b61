"""A real browser against the real ASGI application on the test database."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def eventually(page, expression: str, arg: object = None, *, seconds: float = 20.0) -> None:
    """Wait until a JavaScript expression holds; unlike wait_for_function it needs no eval, which our CSP forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"never became true: {expression}"
        page.wait_for_timeout(40)


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for the tests of a module.

    Not longer: the loop that Playwright keeps running in this thread would refuse every asynchronous test behind it.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"There is no browser at {CHROMIUM}; install Debian's chromium or set CHROMIUM.")
    with pytest.MonkeyPatch.context() as environment, playwright.sync_playwright() as driver:
        # For the same loop Django would refuse the database.
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def server(transactional_db, settings):
    """The web application on a free port, in a thread; its address."""
    import uvicorn

    from webapp.asgi import application

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        application, port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1, ws="websockets-sansio"
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def open_page(browser, server):
    """`open_page(alice, "/runs/…/")` returns a page signed in as her; scripts that fail, fail the test."""
    from django.test import Client

    contexts, problems = [], []

    def open_as(user, path: str, *, width: int = 1400, height: int = 900, scheme: str = "light", script: str = ""):
        client = Client()
        client.force_login(user, backend="allauth.account.auth_backends.AuthenticationBackend")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.add_cookies(
            [{"name": name, "value": cookie.value, "url": server} for name, cookie in client.cookies.items()]
        )
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.problems = problems
        page.goto(server + path)
        return page

    yield open_as
    for context in contexts:
        context.close()
    assert problems == []
