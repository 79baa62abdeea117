"""A gateway before a service that fails as a test wants it to, and the browser."""

from __future__ import annotations

import os
import shutil

import pytest
from gateways import Service, listening


@pytest.fixture(scope="session")
def usual():
    """A model service, and the address of a gateway that asks it."""
    service = Service()
    with listening(service) as url:
        yield service, url


@pytest.fixture
def service(usual):
    usual[0].forget()
    return usual[0]


@pytest.fixture
def gateway(usual, service):  # noqa: ARG001  which has forgotten the test before
    return usual[1]


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox, for tests may run as root; the rest keeps the browser from calling home.
BROWSER_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
BROWSER_ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  the other tests do without it

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.fail(
            "the page is tried in a Chromium, and there is none: install one, or name it in CHROMIUM; looked for"
            f" {', '.join(BROWSERS)}"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A function that opens an address in a window of its own. In the end no page may have had an error or asked
    elsewhere.
    """
    faults, contexts = [], []

    def visit(url, *, path="/", width=1200, height=800, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        # An answer that is an error is said in the console by the browser itself.
        page.on(
            "console",
            lambda m: faults.append(m.text) if m.type == "error" and "Failed to load resource" not in m.text else None,
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((url, "blob:", "data:")) else faults.append(request.url),
        )
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective,"
            " e.blockedURI))"
        )
        page.goto(url + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []
