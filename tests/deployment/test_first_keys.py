"""The keys and passwords that a first start makes: whole, private, made once, and taken by the gateway's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.cli import app
from tests.conftest import require
from tests.deployment.rendered import ROOT, run

FIRST_KEYS = ROOT / "k8s" / "components" / "one-node" / "first-keys.sh"


@pytest.fixture
def path_with_tags(tmp_path: Path) -> str:
    """A PATH on which `tags` is this tree's."""
    require(any(group.name == "key" for group in app.registered_groups), "this tree has no `tags key new`")
    program = tmp_path / "bin" / "tags"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


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


def test_the_compose_stacks_secrets_are_made_once_and_fit_each_other(tmp_path, path_with_tags):
    require(Path("/proc/self").stat().st_uid == 0, "giving files to other users needs root")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    command = [sys.executable, ROOT / "docker" / "compose" / "make_secrets.py", secrets]
    first = run(*command, PATH=path_with_tags, PYTHONPATH=str(ROOT))
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
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
