"""Two bundles side by side: a request chooses, the answer says which spoke, and the default is a setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.bundles import check_distinct, choose, settings_of_others
from service.errors import ModelNotReady, UnknownBundle
from service.settings import Settings
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.phantoms import PhantomSeries, write_ct_series


def engine_of(version: str, name: str = "fake") -> FakeEngine:
    return FakeEngine(replace(FAKE_BUNDLE, name=name, version=version))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    return write_ct_series(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def old() -> FakeEngine:
    return engine_of("0.1.0")


@pytest.fixture
def new() -> FakeEngine:
    return engine_of("0.2.0")


def click(phantom: PhantomSeries) -> dict[str, object]:
    return {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}]}


async def speaker(gateway: RunningGateway, phantom: PhantomSeries, query: str = "", **fields: str) -> str:
    """The bundle that answered, by header, document and log, which must agree."""
    response = await gateway.segment(phantom.paths, click(phantom), query=f"?format=json{query}", fields=fields)
    assert response.status_code == 200, response.text
    document = response.json()["bundle"]
    identity = f"{document['name']} {document['version']}"
    assert response.headers["tags-bundle"] == gateway.log[-1]["bundle"] == identity
    return identity


async def test_a_request_chooses_and_the_answer_says_which_spoke(tmp_path, phantom, old, new):
    async with running(new, tmp_path, others=[old]) as gateway:
        assert await speaker(gateway, phantom) == "fake 0.2.0"
        assert await speaker(gateway, phantom, "&bundle=fake%200.1.0") == "fake 0.1.0"
        assert await speaker(gateway, phantom, bundle="0.1.0") == "fake 0.1.0"
        assert (old.calls.count("encode"), new.calls.count("encode")) == (2, 1)
        listed = (await gateway.client.get("/capabilities")).json()["bundles"]
        assert [(item["version"], item["default"]) for item in listed] == [("0.2.0", True), ("0.1.0", False)]


async def test_roll_back_is_a_start_with_the_other_default(tmp_path, phantom, old, new):
    async with running(old, tmp_path, others=[new]) as gateway:
        assert await speaker(gateway, phantom) == "fake 0.1.0"


async def test_an_unknown_bundle_is_refused_before_the_body_is_read_and_lists_the_known(tmp_path, phantom, old, new):
    async with running(new, tmp_path, others=[old]) as gateway:
        response = await gateway.segment(phantom.paths, click(phantom), query="?bundle=9.9")
        assert slug(response) == "unknown-bundle"
        assert response.json()["bundles"] == ["fake 0.2.0", "fake 0.1.0"]
        assert "9.9" not in response.text
        response = await gateway.segment(phantom.paths, click(phantom), fields={"bundle": "9.9"})
        assert slug(response) == "unknown-bundle"
        assert old.calls == new.calls == []


def test_a_name_that_two_share_is_not_enough(old, new):
    assert choose([new, old], None) is new
    assert choose([new, old], "fake 0.1.0") is old
    with pytest.raises(UnknownBundle, match="2 of the loaded bundles fit"):
        choose([new, old], "fake")
    other = engine_of("3", name="paper")
    assert choose([new, other], "paper") is other


def test_two_bundles_of_one_name_and_version_are_refused_at_the_start(old):
    with pytest.raises(ModelNotReady, match="same name and version"):
        check_distinct([old, engine_of("0.1.0")])


def test_each_further_bundle_has_its_directory_and_with_triton_its_own_server(monkeypatch):
    monkeypatch.setenv("TAGS_MORE_BUNDLES", '["/bundles/b=triton-b:8001"]')
    (further,) = settings_of_others(Settings(engine="triton"))
    assert (further.bundle_dir, further.triton_url) == (Path("/bundles/b"), "triton-b:8001")
    with pytest.raises(ModelNotReady, match="HOST:PORT"):
        settings_of_others(Settings(engine="triton", more_bundles=("/bundles/b",)))
