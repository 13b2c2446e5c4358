"""A real browser, and pages in it that must stay quiet and load nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ppdmodel as ppd

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: no sandbox, as in containers; no graphics process: a page is ready in two thirds of the time
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--in-process-gpu")
Open = Callable[..., Any]


def until(page: Any, script: str) -> None:
    """Wait until a script gives true; the page's policy forbids the browser's own way of asking."""
    for _ in range(200):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within ten seconds: {script}")


@pytest.fixture(scope="session")
def calibration() -> ppd.Calibration:
    """The committed calibration of a real model with trained exits."""
    source = Path(__file__).parents[3] / "data" / "smollm2-135m-trained.calibration.json"
    found = ppd.load(source)
    assert isinstance(found, ppd.Calibration)
    return found


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("the explorer's tests need a browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page from disk; at the end no error was logged and nothing else was asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def opened(text: str, address: str = "", **options: Any) -> Any:
        file = tmp_path / "explorer.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.goto(file.as_uri() + address)
        until(page, "document.getElementById('numbers').rows.length > 10")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= {(tmp_path / "explorer.html").as_uri()}


@pytest.fixture(scope="session")
def plain() -> str:
    """The page without a result."""
    return ppd.explore()


@pytest.fixture(scope="session")
def measured(calibration: ppd.Calibration) -> str:
    """The page of that calibration."""
    return ppd.explore(calibration)
