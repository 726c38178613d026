"""The page at `/` in headless Chromium: it shows what happens while it happens, and replays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import yaml

from service.access.caller import Role
from service.access.keys import key_line, new_key
from tests.conftest import require
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.ledger.arrivals import staged
from tests.pacs.fake_pacs import fake_pacs
from tests.pacs.live import live_gateway
from tests.pacs.stow import store
from tests.phantoms import write_ct_series

pytestmark = pytest.mark.slow
PATIENCE_MS = 60_000


@pytest.fixture
def browser_page() -> Iterator[object]:
    """Debian's Chromium, driven from a thread of its own: playwright's synchronous side wants no event loop here."""
    chromium = shutil.which("chromium")
    require(chromium is not None, "chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield page
        browser.close()
        assert [error for error in errors if "status of 401" not in error] == []  # the browser's own line about it


def test_the_page_shows_receipt_progress_failure_replay_and_delivery_live(browser_page, tmp_path):
    with fake_pacs() as pacs:
        pacs.mode = "refuses"
        file = tmp_path / "routing.yaml"
        rule = {"name": "any", "match": {"Modality": "CT"}, "prompts": {"text": "t"}, "destinations": ["pacs"]}
        document = {"completeness": {"quiet_s": 1}, "destinations": {"pacs": {"stow": {"url": pacs.url}}}}
        file.write_text(yaml.safe_dump(document | {"rules": [rule]}))
        engine = FakeEngine(FAKE_BUNDLE, delay_s=1.0)
        with live_gateway(tmp_path / "data", engine, routing_file=file, delivery_attempts=1) as gateway:
            page = browser_page
            page.goto(gateway.url)
            page.wait_for_selector("#state:text('live')")
            assert "Research use only" in page.inner_text("#use")

            sent = write_ct_series(tmp_path / "sent", shape_zyx=(8, 32, 32))
            store(gateway.client, sent.paths)
            series = f"tr[data-series='{sent.series_instance_uid}']"
            page.wait_for_selector(f"{series}:has-text('arriving')")
            page.wait_for_selector("#jobs tr:has-text('series') progress")
            page.wait_for_selector("#jobs tr:has-text('delivery'):has-text('dead'):has-text('destination-refused')")
            page.wait_for_selector(f"{series}:has-text('given-up: destination-refused')")

            pacs.mode = "good"
            page.click("#jobs tr:has-text('delivery') button:text('Replay')")
            page.wait_for_selector(f"{series} td.delivered")
            assert page.locator("#jobs button").count() == 0
            assert len(pacs.held) == 4  # SEG, structure set, report, picture: the default profile
            assert "CANARY" not in page.content()


def test_the_page_asks_for_a_key_and_then_shows_what_is_there(browser_page, tmp_path):
    key, keys = new_key(), tmp_path / "keys"
    keys.write_text(key_line("reader", frozenset({Role.READ}), key) + "\n")
    with live_gateway(tmp_path / "data", worker=False, api_keys_file=keys) as gateway:
        sent = write_ct_series(tmp_path / "sent", shape_zyx=(2, 8, 8))
        gateway.ledger.receiver.receive([staged(gateway.ledger, path) for path in sent.paths])
        page = browser_page
        page.goto(gateway.url)
        page.wait_for_selector("#access:visible")
        assert page.locator("#series tbody tr").count() == 0
        for wrong in ("tags_wrong", key):
            page.wait_for_selector("#access:visible")
            page.fill("#credential", wrong)
            page.click("#access button")
        page.wait_for_selector("#state:text('live')")
        page.wait_for_selector(f"tr[data-series='{sent.series_instance_uid}']")
        assert page.locator("#access").is_hidden()
        assert page.context.cookies() == []
        assert key not in page.content()
