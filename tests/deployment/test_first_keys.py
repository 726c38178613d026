"""The keys and passwords that a first start makes: whole, private, made once, and taken by the gateway's own reader."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from demo.running import free_port
from service.cli import app
from tests.conftest import require
from tests.deployment.rendered import ROOT, program, run, tool
from tests.pacs.orthanc import require_orthanc

FIRST_KEYS = ROOT / "k8s" / "components" / "one-node" / "first-keys.sh"


@pytest.fixture
def path_with_tags(tmp_path: Path) -> str:
    """A PATH on which `tags` is this tree's."""
    require(any(group.name == "key" for group in app.registered_groups), "this tree has no `tags key new`")
    program(tmp_path / "bin", "tags", f"{sys.executable} -m service.cli")
    return f"{tmp_path}/bin:/usr/bin:/bin"


def callers(keys_file: Path, keys: dict[str, str]) -> dict[str, frozenset[str]]:
    """Whom the gateway takes the keys' bearers for, and their roles."""
    from service.access.keys import KeyFile

    file = KeyFile(keys_file)
    found = {name: file.caller(key, time.time()) for name, key in keys.items()}
    return {name: frozenset(map(str, caller.roles)) for name, caller in found.items() if caller}


def private(path: Path) -> bool:
    return path.stat().st_mode & 0o077 == 0


def test_several_pods_that_start_at_once_make_one_set_of_keys(tmp_path, path_with_tags):
    script = tmp_path / "first-keys.sh"
    script.write_text(FIRST_KEYS.read_text().replace("/data", str(tmp_path / "data")))
    (tmp_path / "data").mkdir()
    with ThreadPoolExecutor(3) as pods:
        runs = list(pods.map(lambda _: run("sh", script, PATH=path_with_tags, PYTHONPATH=str(ROOT)), range(3)))
    assert all((item.returncode, item.stdout) == (0, "") for item in runs), [item.stderr for item in runs]
    access = tmp_path / "data" / "access"
    names = {"admin": "first-key-admin", "pacs": "first-key-pacs", "prometheus": "first-key-prometheus"}
    files = names | {"watchdog": "key-watchdog"}
    assert {path.name for path in access.iterdir()} == {"api-keys", *files.values()}
    assert all(private(path) for path in [access, *access.iterdir()])
    keys = {name: (access / file).read_text().strip() for name, file in files.items()}
    assert callers(access / "api-keys", keys) == {
        "admin": {"segment", "push", "read", "admin"},
        "pacs": {"push"},
        "prometheus": set(),
        "watchdog": {"segment", "read"},
    }
    assert not any(key in (access / "api-keys").read_text() for key in keys.values())


MAKE_SECRETS = ROOT / "docker" / "compose" / "make_secrets.py"


@pytest.fixture
def secrets(tmp_path: Path, path_with_tags: str) -> Path:
    """As the compose stack's first start makes them."""
    require(Path("/proc/self").stat().st_uid == 0, "giving files to other users needs root")
    (tmp_path / "secrets").mkdir()
    first = run(sys.executable, MAKE_SECRETS, tmp_path / "secrets", PATH=path_with_tags, PYTHONPATH=str(ROOT))
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    return tmp_path / "secrets"


def test_the_compose_stacks_secrets_are_made_once_and_fit_each_other(secrets, path_with_tags):
    command = [sys.executable, MAKE_SECRETS, secrets]
    kept = {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}
    assert run(*command, PATH=path_with_tags, PYTHONPATH=str(ROOT)).returncode == 0
    assert kept == {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}
    assert all(private(path) for path in secrets.rglob("*") if path.name != "complete")

    orthanc = json.loads((secrets / "orthanc" / "orthanc.json").read_text())
    bearer = orthanc["DicomWeb"]["Servers"]["tags"]["HttpHeaders"]["Authorization"].removeprefix("Bearer ")
    keys = {"orthanc": bearer, "prometheus": (secrets / "prometheus" / "key").read_text()}
    keys["watchdog"] = (secrets / "gateway" / "watchdog-key").read_text()
    assert callers(secrets / "gateway" / "api-keys", keys) == {
        "orthanc": {"push"},
        "prometheus": set(),
        "watchdog": {"segment", "read"},
    }
    assert orthanc["RegisteredUsers"]["tags"] == (secrets / "gateway" / "pacs-password").read_text()
    database = (secrets / "postgres" / "password").read_text()
    assert (secrets / "gateway" / "pgpass").read_text() == f"*:*:*:tags:{database}\n"
    shell = [". ./environment && echo $ROOT_SECRET_ACCESS_KEY"]
    store = subprocess.run(["sh", "-c", *shell], cwd=secrets / "objects", capture_output=True, text=True, check=True)  # noqa: S603, S607
    assert f"aws_secret_access_key = {store.stdout}" in (secrets / "gateway" / "s3-credentials").read_text()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_service_of_the_stack_runs_as_the_owner_of_the_secrets_that_it_reads(secrets, profile):
    """The folders are closed to all others, also to root without capabilities."""
    done = run(tool("docker-compose"), "--profile", profile, "-f", "docker-compose.yml", "config")
    reading = set()
    for name, service in yaml.safe_load(done.stdout)["services"].items():
        sources = {volume["target"]: volume["source"] for volume in service["volumes"]} if "volumes" in service else {}
        if "/secrets" not in sources or name == "secrets":
            continue
        said = [yaml.safe_dump(service), *(Path(path).read_text() for path in sources.values() if path.endswith("yml"))]
        (folder,) = set(re.findall(r"/secrets/(\w+)/", "\n".join(said)))
        assert {path.stat().st_uid for path in (secrets / folder, *(secrets / folder).iterdir())} == {
            int(service["user"])
        }, name
        reading.add(folder)
    assert reading == {path.name for path in secrets.iterdir() if path.is_dir()}


def test_an_orthanc_of_the_stack_speaks_dicomweb(secrets, tmp_path):
    require_orthanc()
    settings = json.loads((secrets / "orthanc" / "orthanc.json").read_text())
    (user,) = settings["RegisteredUsers"].items()
    port = free_port()
    settings |= {"HttpPort": port, "DicomPort": free_port(), "LuaScripts": []}
    settings |= {"StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db")}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], stdout=log, stderr=log)  # noqa: S603, S607
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=user, trust_env=False) as client:
            for _ in range(300):
                assert process.poll() is None, (tmp_path / "log").read_text()
                with suppress(httpx.TransportError):
                    client.get("/system").raise_for_status()
                    break
                time.sleep(0.1)
            assert client.get("/dicom-web/studies").json() == []
            assert client.get("/dicom-web/servers").json() == ["tags"]
    finally:
        process.terminate()
        process.wait(20)


def test_ohifs_web_server_runs_as_the_user_who_owns_its_configuration(secrets):
    require(shutil.which("nginx") is not None, "nginx is not installed")
    written, port = secrets / "ohif" / "nginx.conf", free_port()
    owner = written.stat().st_uid
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)  # where that user may go
        (place / "index.html").write_text("OHIF")
        changes = {
            "listen 8081": f"listen 127.0.0.1:{port}",
            "//orthanc:": "//127.0.0.1:",
            "/usr/share/nginx/html": name,
        }
        text = written.read_text().replace("/tmp/", f"{name}/")  # noqa: S108
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (place / "nginx.conf").write_text(text)
        for path in (place, *place.iterdir()):
            os.chown(path, owner, owner)
        command = ["nginx", "-c", f"{name}/nginx.conf", "-g", "daemon off;"]
        with (secrets / "log").open("wb") as log:
            process = subprocess.Popen(command, user=owner, group=owner, extra_groups=[], stdout=log, stderr=log)  # noqa: S603
        try:
            for _ in range(100):
                assert process.poll() is None, (secrets / "log").read_text()
                with suppress(httpx.TransportError):
                    assert httpx.get(f"http://127.0.0.1:{port}/viewer/x", trust_env=False).text == "OHIF"
                    saved = httpx.post(f"http://127.0.0.1:{port}/dicom-web/studies", content=bytes(2 * 1024**2))
                    assert saved.status_code == 502  # no Orthanc is there; 413 would be nginx's own limit
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("it does not answer")
        finally:
            process.terminate()
            process.wait(20)


def test_nothing_of_the_stack_needs_more_cores_or_calls_home():
    """An engine creates no container with more CPUs than the machine has; Grafana waits for its plug-ins to come."""
    done = run(tool("docker-compose"), "--profile", "cpu", "-f", "docker-compose.yml", "config")
    services = yaml.safe_load(done.stdout)["services"]
    assert not [name for name, service in services.items() if "cpus" in service]
    grafana = services["grafana"]["environment"]
    calls = ("ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES", "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
             "NEWS_NEWS_FEED_ENABLED")  # fmt: skip
    assert {grafana[f"GF_{name}"] for name in calls} == {"false"}
    assert grafana["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
