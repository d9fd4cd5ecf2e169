"""The documentation site in a browser: make test-docs."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.peers import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.browser

SITE = Path(__file__).parents[2] / "build" / "docs"
#: Pages that Sphinx generates.
GENERATED = {"genindex.html", "search.html", "py-modindex.html"}
PAGES = sorted({page.name for page in SITE.glob("*.html")} - GENERATED)
#: A folder for screenshots, for a person to look at.
SHOTS = os.environ.get("KAPUDF_SCREENSHOTS")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium, or skip the tests and say what is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra kapudf[browser]")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium on PATH")
    if not PAGES:
        pytest.skip("needs the site: make docs")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Serve the site on the loopback address."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Silent, directory=str(SITE))
    ) as server:
        in_thread(server.serve_forever)
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=["served", "folder"])
def address(request: pytest.FixtureRequest, served: str) -> str:
    """Give the address of the site, at a server and in a folder."""
    return served if request.param == "served" else SITE.as_uri()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Open a page; in the end, fail for messages on the console and requests to other places."""
    contexts: list[Any] = []
    problems: list[str] = []

    def note(message: Any) -> None:
        if message.type in {"error", "warning"}:
            problems.append(message.text)

    def opened(url: str, scheme: str = "light", size: str = "desktop") -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(f"{url}: {error}"))
        own = url.rpartition("/")[0].partition("?")[0]
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((own, "data:"))
                else problems.append(f"{url} asks for {request.url}")
            ),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def shot(page: Page, name: str, *, full: bool = False) -> None:
    """Take a screenshot, if a person wants them."""
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=full)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_renders(
    open_page: Callable[..., Page], served: str, scheme: str, size: str
) -> None:
    page = open_page(f"{served}/index.html", scheme, size)
    for name in PAGES:
        page.goto(f"{served}/{name}")
        assert page.locator("h1, h2").first.is_visible()
        widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], f"{name} is wider than the window"
        broken = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
        assert page.evaluate(broken) == []
        shot(page, f"{name.removesuffix('.html')}-{scheme}-{size}")


def test_the_colours_are_those_of_the_system_until_a_reader_chooses(
    open_page: Callable[..., Page], address: str
) -> None:
    backgrounds = {}
    for scheme in ("light", "dark"):
        page = open_page(f"{address}/index.html", scheme)
        backgrounds[scheme] = background(page)
    assert backgrounds["light"] != backgrounds["dark"]
    page = open_page(f"{address}/index.html", "light")
    for _ in range(3):
        page.locator(".theme-toggle:visible").first.click()
        if background(page) == backgrounds["dark"]:
            break
    assert background(page) == backgrounds["dark"]


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kapacitor reload", "troubleshooting.html"),
        ("snapshot", "writing-handlers.html"),
        ("broken pipe", "troubleshooting.html"),
        ("windowSize", "writing-handlers.html"),
        ("--busy-limit", "command-line.html"),
        ("PerGroup", "api.html"),
    ],
)
def test_search_finds(
    open_page: Callable[..., Page], address: str, words: str, expected: str
) -> None:
    page = open_page(f"{address}/index.html")
    box = page.locator("input[name=q]:visible").first
    box.fill(words)
    box.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelector('.search-summary')?.innerText.length > 0")
    links = page.evaluate(
        "[...document.querySelectorAll('#search-results li a')].map(each => each.href)"
    )
    assert any(f"/{expected}" in link for link in links[:5]), links
    shot(page, f"search-{words.strip('-').replace(' ', '-')}-{address.partition(':')[0]}")


def test_every_page_is_in_the_navigation(open_page: Callable[..., Page], address: str) -> None:
    page = open_page(f"{address}/index.html")
    links = page.evaluate(
        "[...document.querySelectorAll('.sidebar-tree a')].map(each => each.href)"
    )
    found = {link.rpartition("/")[2].partition("#")[0] for link in links} | {"index.html"}
    assert set(PAGES) <= found


def test_a_phone_has_a_menu(open_page: Callable[..., Page], served: str) -> None:
    page = open_page(f"{served}/index.html", "light", "phone")
    page.locator("label.nav-overlay-icon:visible").first.click()
    link = page.locator(".sidebar-tree a", has_text="Troubleshooting")
    link.wait_for(state="visible")
    shot(page, "menu-phone")
    link.click()
    assert page.locator("h1").first.inner_text().startswith("Troubleshooting")
