"""API keys, roles by route, own jobs, limits per client, other sites' pages, and where the service may listen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from service import cli
from service.access.caller import Role
from service.access.keys import KeysInvalid, digest_of, key_line, new_key, read_keys
from service.access.limits import ClientLimits
from service.access.listening import ListeningRefused, check_listening, is_loopback
from service.api.permissions import ROUTES, Open, needed
from service.app import create_app
from service.errors import TooManyRequests
from service.settings import Settings
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FakeEngine
from tests.phantoms import write_ct_series

KEYS = {name: new_key() for name in ("segment", "push", "read", "admin", "none", "other")}
ROLES = {"none": [], "other": [Role.SEGMENT]}
EVERYWHERE = "0.0.0.0"  # noqa: S104  (no test listens there)
JOB = "00000000-0000-0000-0000-000000000000"


def write_keys(path: Path, names=tuple(KEYS)) -> Path:
    lines = [key_line(name, frozenset(ROLES.get(name, [name])), KEYS[name]) for name in names]
    path.write_text("# keys\n" + "\n".join(lines) + "\n")
    return path


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys")


@pytest.fixture
async def gateway(tmp_path: Path, key_file: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakeEngine(), tmp_path, worker=False, api_keys_file=key_file) as started:
        yield started


def every_route() -> list[tuple[str, str]]:
    """From the document that callers see, so that none is missed, and the page."""
    document = create_app(Settings(), engine=FakeEngine()).openapi()
    listed = [(method.upper(), path) for path, operations in document["paths"].items() for method in operations]
    pages = ("/", "/docs", "/docs/oauth2-redirect", "/docs/errors")
    return [*listed, *(("GET", page) for page in pages)]


def test_every_route_stands_in_the_table_and_no_other_does():
    routes = every_route()
    assert [route for route in routes if needed(*route) == frozenset()] == []
    assert set(ROUTES) <= set(routes)
    assert {path for (_, path) in routes if needed("GET", path) is Open.PUBLIC} == {
        "/", "/docs", "/docs/oauth2-redirect", "/docs/errors", "/health/live", "/health/ready",
    }  # fmt: skip


def test_a_route_that_nobody_thought_of_is_refused_to_everyone():
    assert needed("GET", "/new") == frozenset()


def addressed(path: str) -> str:
    """A route's path with something in its places that is not there."""
    for name, value in {"{job_id}": JOB, "{number}": "1", "{numbers}": "1"}.items():
        path = path.replace(name, value)
    for name in ("study", "series", "instance"):
        path = path.replace(f"{{{name}}}", "1.2.3")
    return path


@pytest.mark.parametrize("caller", [*KEYS, None])
async def test_each_caller_may_do_what_its_roles_say_and_nothing_else(gateway, caller):
    roles = set(ROLES.get(caller, [caller])) if caller else set()
    for method, path in every_route():
        wanted = needed(method, path)
        if path == "/ledger/events" and Role.READ in roles:
            continue  # without an end; tested by itself
        answer = await gateway.client.request(method, addressed(path), headers=bearer(caller) if caller else {})
        if wanted is Open.PUBLIC:
            assert answer.status_code == 200, path
        elif caller is None:
            assert (answer.status_code, slug(answer)) == (401, "unauthenticated"), path
        elif wanted is not Open.KNOWN and not roles & wanted:
            assert (answer.status_code, slug(answer)) == (403, "role-missing"), path
        else:
            assert answer.status_code not in (401, 403), path
            assert answer.status_code < 500, path


async def test_a_segmenter_sees_and_ends_its_own_jobs_only(gateway, tmp_path):
    phantom = write_ct_series(tmp_path / "sent", shape_zyx=(6, 24, 24))
    headers = bearer("segment") | {"Prefer": "respond-async"}
    answer = await gateway.segment(phantom.paths, {"text": "liver tumour"}, headers=headers)
    address = answer.headers["location"]
    assert "requested_by" not in answer.json()
    assert (await gateway.client.get(address, headers=bearer("segment"))).status_code == 200
    assert (await gateway.client.get(address, headers=bearer("read"))).status_code == 200
    for path in (address, f"{address}/result", f"{address}/events"):
        assert slug(await gateway.client.get(path, headers=bearer("other"))) == "role-missing"
    assert slug(await gateway.client.delete(address, headers=bearer("other"))) == "role-missing"
    assert (await gateway.client.delete(address, headers=bearer("read"))).status_code == 403
    assert (await gateway.client.delete(address, headers=bearer("segment"))).status_code == 204


async def test_a_key_that_is_removed_is_refused_at_once_and_ends_its_events(gateway, key_file):
    async with gateway.client.stream("GET", "/ledger/events", headers=bearer("push")) as refused:
        assert refused.status_code == 403
    assert (await gateway.client.get("/jobs", headers=bearer("read"))).status_code == 200
    caller = await gateway.app.state.gateway.authenticator.caller(f"Bearer {KEYS['read']}")
    assert await gateway.app.state.gateway.authenticator.still_valid(caller, f"Bearer {KEYS['read']}")
    write_keys(key_file, ("push",))
    assert (await gateway.client.get("/jobs", headers=bearer("read"))).status_code == 401
    assert not await gateway.app.state.gateway.authenticator.still_valid(caller, f"Bearer {KEYS['read']}")


async def test_a_key_file_that_does_not_parse_lets_no_key_in(gateway, key_file):
    key_file.write_text("read read not-a-hash\n")
    answer = await gateway.client.get("/jobs", headers=bearer("read"))
    assert (answer.status_code, slug(answer)) == (503, "authentication-unavailable")
    write_keys(key_file)
    assert (await gateway.client.get("/jobs", headers=bearer("read"))).status_code == 200


async def test_a_key_is_over_after_its_last_day(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"old read {digest_of(KEYS['read'])} 2020-01-01\nnew read {digest_of(KEYS['push'])} 2999-01-01\n")
    async with running(FakeEngine(), tmp_path, worker=False, api_keys_file=file) as gateway:
        assert (await gateway.client.get("/jobs", headers=bearer("read"))).status_code == 401
        assert (await gateway.client.get("/jobs", headers=bearer("push"))).status_code == 200


@pytest.mark.parametrize(
    "text", ["a", "a read 00", f"a cook {'0' * 64}", f"a read {'0' * 64} soon", f"a - {'0' * 64}\na - {'1' * 64}"]
)
def test_a_key_file_that_is_not_valid_is_refused_without_its_content(text):
    with pytest.raises(KeysInvalid) as caught:
        read_keys(text)
    assert "0000" not in str(caught.value)


def test_the_command_prints_a_key_and_a_line_that_lets_it_in(tmp_path):
    done = CliRunner().invoke(
        cli.app, ["key", "new", "pacs", "--role", "push", "--role", "read", "--last-day", "2999-12-31"]
    )
    key, line = done.stdout.splitlines()
    (known,) = read_keys(line)
    assert (known.name, known.roles, known.digest) == ("pacs", {Role.PUSH, Role.READ}, digest_of(key))
    assert key not in line
    assert CliRunner().invoke(cli.app, ["key", "new", "no spaces"]).exit_code == 1


async def test_no_key_reaches_a_log_or_an_answer(gateway):
    for path in ("/jobs", "/capabilities", "/nowhere", "/metrics"):
        answer = await gateway.client.get(path, headers=bearer("read"))
        assert KEYS["read"] not in answer.text + gateway.log_text


def test_a_bucket_refills_and_counts_each_client_by_itself():
    now = [0.0]
    limits = ClientLimits(per_minute=6, at_once=2, clock=lambda: now[0])
    for _ in range(6):
        limits.enter("a")()
    with pytest.raises(TooManyRequests, match="10 s"):
        limits.enter("a")
    limits.enter("b")()
    now[0] = 10.0
    leave = limits.enter("a")
    now[0] = 60.0
    limits.enter("a")
    with pytest.raises(TooManyRequests, match="being answered"):
        limits.enter("a")
    leave()
    limits.enter("a")


async def test_a_client_that_asks_too_much_is_told_when_to_come_again_and_probes_go_on(tmp_path, key_file):
    limits = {"client_requests_per_minute": 3}
    async with running(FakeEngine(), tmp_path, worker=False, api_keys_file=key_file, **limits) as gateway:
        answers = [await gateway.client.get("/jobs", headers=bearer("read")) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert slug(answers[-1]) == "too-many-requests"
        assert int(answers[-1].headers["retry-after"]) > 0
        assert (await gateway.client.get("/jobs", headers=bearer("admin"))).status_code == 403  # another client
        guesses = [
            (await gateway.client.get("/jobs", headers={"Authorization": "Bearer tags_guess"})).status_code
            for _ in range(5)
        ]
        assert guesses == [401, 401, 401, 429, 429]  # by address
        assert (await gateway.client.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 404),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://tags.hospital.example"}, 404),  # behind a proxy
        ({}, 404),
    ],
)
async def test_pages_of_other_sites_change_nothing_and_read_nothing(tmp_path, headers, status):
    async with running(FakeEngine(), tmp_path, worker=False) as gateway:
        answer = await gateway.client.post(f"/jobs/{JOB}/replay", headers=headers)
        assert answer.status_code == status
        preflight = await gateway.client.options("/jobs", headers=headers | {"Access-Control-Request-Method": "GET"})
        readable = await gateway.client.get("/jobs", headers=headers)
        for each in (answer, preflight, readable):
            assert not [name for name in each.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("evil.example:80", 421),
    ],
)
async def test_without_authentication_only_this_machines_names_are_answered(tmp_path, key_file, host, status):
    async with running(FakeEngine(), tmp_path, worker=False) as gateway:
        assert (await gateway.client.get("/jobs", headers={"Host": host})).status_code == status
    async with running(FakeEngine(), tmp_path, worker=False, api_keys_file=key_file) as gateway:
        assert (await gateway.client.get("/jobs", headers={"Host": host} | bearer("read"))).status_code == 200


async def test_a_proxy_that_authenticates_is_believed_only_when_the_setting_says_so(tmp_path, key_file):
    async with running(FakeEngine(), tmp_path, worker=False, host=EVERYWHERE, authenticated_by_proxy=True) as gateway:
        assert (await gateway.client.get("/jobs", headers={"Host": "tags.hospital.example"})).status_code == 200
    async with running(FakeEngine(), tmp_path, worker=False, api_keys_file=key_file) as gateway:
        assert (await gateway.client.get("/jobs", headers={"X-Forwarded-User": "admin"})).status_code == 401


@pytest.mark.parametrize(("host", "expected"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), (EVERYWHERE, False), ("", False),
    ("::", False), ("10.0.0.1", False), ("tags.example", False), ("localhost.example", False),
])  # fmt: skip
def test_what_counts_as_this_machine(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", [EVERYWHERE, "10.0.0.1", "::", "tags.example", ""])
def test_listening_for_others_without_authentication_is_refused_with_one_line(host, key_file, monkeypatch):
    with pytest.raises(ListeningRefused, match="TAGS_OIDC_ISSUER or TAGS_API_KEYS_FILE"):
        create_app(Settings(host=host), engine=FakeEngine())
    check_listening(Settings(host=host, api_keys_file=key_file))
    check_listening(Settings(host=host, authenticated_by_proxy=True))
    check_listening(Settings(host=host, oidc_issuer="https://sso.example/realm", oidc_audience="tags"))
    monkeypatch.setattr(cli.err, "_width", 400)
    done = CliRunner().invoke(cli.app, ["serve", "--host", host, "--port", "0"])
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1


def test_half_a_configuration_is_refused(key_file):
    for half in ({"oidc_issuer": "https://sso.example"}, {"oidc_audience": "tags"}):
        with pytest.raises(ListeningRefused, match="belong together"):
            check_listening(Settings(**half))
    with pytest.raises(ListeningRefused, match="AUTHENTICATED_BY_PROXY"):
        check_listening(Settings(authenticated_by_proxy=True, api_keys_file=key_file))


@pytest.mark.parametrize(
    "address", ["http://sso.example", "http://localhost.evil.example", "https://user@sso.example", "ftp://a"]
)
def test_an_issuer_is_reached_by_https(address):
    with pytest.raises(ValidationError):
        Settings(oidc_issuer=address)


def test_the_document_says_who_may_and_how_one_is_refused():
    document = create_app(Settings(), engine=FakeEngine()).openapi()
    post = document["paths"]["/segment"]["post"]
    assert post["security"] == [{"bearer": []}]
    assert post["x-roles"] == ["segment"]
    assert {"401", "403", "429", "503"} <= {str(status) for status in document["paths"]["/jobs"]["get"]["responses"]}
    assert document["paths"]["/health/live"]["get"]["security"] == []
    assert json.dumps(document)
