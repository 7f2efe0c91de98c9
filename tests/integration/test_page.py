"""The page at /docs in a real browser, offline."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, sync_playwright
from projects import ROUTE
from started import serving, tool


@pytest.fixture(scope="module")
def page(trained):
    with serving(trained) as running, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=tool("chromium"), args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(base_url=running.url)
        shown.asked, shown.complaints = [], []
        shown.on("request", lambda request: shown.asked.append(request.url.removeprefix(running.url)))
        shown.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.on("console", lambda line: shown.complaints.append(line.text) if line.type == "error" else None)
        yield shown
        browser.close()


def open_operation(page: Page, name: str) -> None:
    page.goto("/docs")
    page.click(f"#operations-{name} .opblock-summary")
    page.wait_for_selector(".execute")


def test_the_page_sends_a_request_and_shows_the_response(page):
    open_operation(page, "predict-predict_v1")
    page.fill("textarea.body-param__text", json.dumps(ROUTE))
    page.click(".execute")

    assert "22.068840579710145" in page.inner_text(".live-responses-table")


def test_the_page_shows_the_fault_of_a_request(page):
    open_operation(page, "predict-predict_v1")
    page.fill("textarea.body-param__text", json.dumps({**ROUTE, "time_spent": "soon"}))
    page.click(".execute")

    assert "wanted a number from 0 to 1,440, got 'soon'" in page.inner_text(".live-responses-table")


def test_the_page_asks_no_other_server_and_has_no_errors(page):
    open_operation(page, "predict-predict_v2")

    assert page.asked
    assert [] == [url for url in page.asked if not url.startswith(("/", "data:"))]
    assert [] == [text for text in page.complaints if "422" not in text]
