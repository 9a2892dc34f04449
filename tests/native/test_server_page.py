"""llama-server's web page in headless Chromium: send a message, see tokens appear, stop, reload, find the conversation.

Screenshots are kept in a folder that the test prints.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from once import one_at_a_time
from served import Server, programs_with, serving, wait_for

from gguf_bof4.ggml_patch.page import PageError, build_page, find_npm, made_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,800",
)  # fmt: skip
ASSISTANT = '[aria-label="Assistant message with actions"]'
USER = '[aria-label="User message with actions"]'
NUMBERS = "Write the numbers from 1 to 2000, one on each line."
"""The model does not end its answer by itself: a story ends within seconds on a fast machine, before it is stopped."""


@pytest.fixture(scope="module")
def chromium() -> tuple[str, str]:
    """Paths of the browser and of its driver; no test fetches a browser."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with chromedriver here: `apt install chromium chromium-driver`")
    return browser, driver


@pytest.fixture(scope="module")
def page(chromium: tuple[str, str]) -> Path:
    """The page: from the cache, or built with npm, which takes minutes once, where there is a browser to show it."""
    with one_at_a_time("page"):
        if made_page() is None:
            try:
                find_npm()
            except PageError as error:
                pytest.skip(str(error))
        return build_page()


@pytest.fixture(scope="module")
def server(smol_opq: Path, built: Path, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    programs = programs_with(built, tmp_path_factory.mktemp("with-page"), page)
    with serving(smol_opq, "--temp", "0", "-c", "4096", BOF4_BIN=str(programs)) as server:
        yield server


@pytest.fixture
def browser(chromium: tuple[str, str], tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium[0]
    for option in (*OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(chromium[1]))
    yield driver
    driver.quit()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


class Chat:
    """The page as a user sees it: what is shown, and the keys and buttons that a user takes."""

    def __init__(self, driver: Any, screenshots: Path) -> None:
        self.driver = driver
        self.screenshots = screenshots

    def visible(self, selector: str) -> list[Any]:
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        """In one call, so that nothing changes between finding and reading."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
        return list(self.driver.execute_script(script, selector))

    def has_button(self, label: str, *, click: bool = False) -> bool:
        """Is a button shown with this label or text, which may be one that only a screen reader reads out?

        Found and clicked in one call: while tokens come, elements are replaced.
        """
        script = """
            const found = [...document.querySelectorAll("button")].filter(b => b.offsetParent !== null
                && [b.ariaLabel, b.textContent.trim()].includes(arguments[0]))
            if (arguments[1] && found.length) found[0].click()
            return found.length > 0
        """
        return bool(self.driver.execute_script(script, label, click))

    def wait(self, selector: str, what: str) -> None:
        wait_for(lambda: self.visible(selector), what, 60)

    def send(self, message: str) -> None:
        self.wait("textarea", "the field for messages")
        (field,) = self.visible("textarea")
        field.send_keys(message)
        field.send_keys("\ue007")  # Enter

    def photograph(self, name: str) -> None:
        self.driver.save_screenshot(str(self.screenshots / f"{name}.png"))


def busy_slots(server: Server) -> int:
    return sum(slot["is_processing"] for slot in server.json("/slots"))


def test_a_conversation(server: Server, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    screenshots = tmp_path_factory.mktemp("screenshots")
    print(f"screenshots of the web page: {screenshots}")
    chat = Chat(browser, screenshots)

    browser.get(server.url)
    chat.wait("textarea", "the page")
    assert "has no web page" not in browser.page_source
    chat.photograph("1-loaded")

    chat.send("What is the capital of France?")
    wait_for(lambda: "Paris" in "".join(chat.texts(ASSISTANT)), "the answer", 60)
    wait_for(lambda: busy_slots(server) == 0, "its end", 60)
    chat.photograph("2-answered")

    chat.send(NUMBERS)
    lengths: set[int] = set()

    def grows() -> bool:
        lengths.update(len(text) for text in chat.texts(ASSISTANT)[1:])
        return len(lengths) >= 5

    wait_for(grows, "an answer that grows token by token", 60)
    assert busy_slots(server) == 1
    chat.photograph("3-streaming")

    assert chat.has_button("Stop", click=True)
    wait_for(lambda: busy_slots(server) == 0, "the stop of the server's work", 20)
    wait_for(lambda: not chat.has_button("Stop"), "the end of the page's wait", 20)
    stopped = chat.texts(ASSISTANT)
    assert len(stopped) == 2
    chat.photograph("4-stopped")

    browser.get(server.url)  # a new conversation would begin here
    browser.refresh()
    chat.wait("textarea", "the page once more")
    assert chat.texts(ASSISTANT) == []
    assert chat.has_button("Expand navigation", click=True)
    wait_for(lambda: "capital of France" in browser.find_element("tag name", "body").text, "the list", 20)
    chat.photograph("5-reloaded")
    found = [e for e in chat.visible("a, button, [role=button]") if "capital of France" in e.text]
    found[-1].click()
    wait_for(lambda: len(chat.texts(ASSISTANT)) == 2, "the conversation", 20)
    chat.photograph("6-found")
    assert [text.splitlines()[0] for text in chat.texts(USER)] == ["What is the capital of France?", NUMBERS]
    assert "Paris" in chat.texts(ASSISTANT)[0]
    assert chat.texts(ASSISTANT)[1][:40] == stopped[1][:40]
    assert sorted(path.name for path in screenshots.iterdir() if path.stat().st_size > 1000) == [
        "1-loaded.png", "2-answered.png", "3-streaming.png", "4-stopped.png", "5-reloaded.png", "6-found.png",
    ]  # fmt: skip


def test_the_page_keeps_working_where_a_key_is_needed(
    smol_opq: Path, built: Path, page: Path, browser: Any, tmp_path: Path
) -> None:
    """The page and its parts need no key; without one it shows that the interface does."""
    programs = programs_with(built, tmp_path, page)
    with serving(smol_opq, "--api-key", "secret", "-c", "512", BOF4_BIN=str(programs)) as server:
        browser.get(server.url)
        body = browser.find_element("tag name", "body")
        wait_for(lambda: "API key" in body.text or "Access" in body.text, "the question for the key", 60)
