"""Backup and restore, by the very commands of docs/upgrade-backup.md, while a sender goes on sending."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from service.dicom.facts import read_facts
from service.ledger.jobs import NewJob
from service.ledger.ledger import Ledger, open_ledger
from service.ledger.report import reconcile
from service.ledger.tables import instance
from tests.deployment.rendered import ROOT
from tests.ledger.arrivals import phantom_series, staged
from tests.pacs.test_nothing_lost import POSTGRES, postgres

__all__ = ["postgres"]
BEFORE = 3  # series that are there before the backup begins


def recipe(name: str) -> str:
    """A block of the page."""
    (found,) = re.findall(rf"^```sh {name}\n(.*?)^```$", (ROOT / "docs" / "upgrade-backup.md").read_text(), re.M | re.S)
    return found


def follow(name: str, **variables: object) -> None:
    tools = f"{Path(sys.executable).parent}:{':'.join(map(str, POSTGRES.glob('*/bin')))}:{os.environ['PATH']}"
    environment = os.environ | {key: str(value) for key, value in variables.items()} | {"PATH": tools}
    done = subprocess.run(  # noqa: S603
        ["/bin/sh", "-eu", "-c", recipe(name)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def send(ledger: Ledger, directory: Path, name: str) -> list[Path]:
    """One series, acknowledged."""
    phantom = phantom_series(directory / name, series=name, images=4)
    ledger.receiver.receive([staged(ledger, path) for path in phantom.paths])
    return list(phantom.paths)


def backed_up_while_sending(ledger: Ledger, directory: Path, backup: Callable[[], None]) -> int:
    """Returns: how many images were acknowledged before the backup began. More come all the while."""
    before = [path for number in range(BEFORE) for path in send(ledger, directory, f"before-{number}")]
    ledger.jobs.add(NewJob(kind="series", key="waits", plan={"rule": "r"}))
    ended, sent = threading.Event(), []

    def go_on() -> None:
        while not ended.is_set():
            sent.append(send(ledger, directory, f"during-{len(sent)}"))

    sender = threading.Thread(target=go_on)
    sender.start()
    try:
        backup()
    finally:
        ended.set()
        sender.join()
    assert sent  # it did go on
    return len(before)


def check_restored(ledger: Ledger, at_least: int) -> None:
    """Every image that the ledger names is there with its content; sums match; the job goes on."""
    with ledger.database.reading() as connection:
        rows = connection.execute(select(instance.c.object_key, instance.c.digest)).all()
    assert len(rows) >= at_least
    for row in rows:
        (held,) = ledger.store.fetch([row.object_key], ledger.staging.directory())
        assert read_facts(held).digest == row.digest
    report = reconcile(ledger.database)
    assert (report.balanced, report.instances) == (True, len(rows))
    lease = ledger.jobs.claim("after the restore", kinds=("series",))
    assert lease is not None
    ledger.jobs.end(lease, state="done")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_backup_of_sqlite_and_a_folder_under_load_holds_all_that_was_acknowledged(tmp_path):
    data, kept, anew = tmp_path / "data", tmp_path / "kept", tmp_path / "anew"
    with closing(open_ledger(data)) as ledger:
        known = backed_up_while_sending(
            ledger, tmp_path / "series", lambda: follow("backup-sqlite", DATA=data, BACKUP=kept)
        )
        follow("restore-sqlite", DATA=anew, BACKUP=kept)
        assert contents(anew / "objects").items() <= contents(data / "objects").items()
    with closing(open_ledger(anew)) as restored:
        check_restored(restored, known)


@pytest.mark.slow
def test_a_backup_of_postgresql_and_a_folder_under_load_holds_all_that_was_acknowledged(tmp_path, postgres):
    url, _ = postgres
    objects, kept, anew = tmp_path / "objects", tmp_path / "kept", tmp_path / "anew"
    native = url.replace("postgresql+psycopg:", "postgresql:")
    with closing(open_ledger(tmp_path / "data", database_url=url, object_store_url=str(objects))) as ledger:
        known = backed_up_while_sending(
            ledger,
            tmp_path / "series",
            lambda: follow("backup-postgresql", DATABASE=native, OBJECTS=objects, BACKUP=kept),
        )
    create = ["psql", "--quiet", "--command", "CREATE DATABASE anew", native]
    subprocess.run(create, check=True)  # noqa: S603
    other, other_native = (re.sub(r"/postgres$", "/anew", address) for address in (url, native))
    follow("restore-postgresql", DATABASE=other_native, OBJECTS=anew, BACKUP=kept)
    with closing(open_ledger(tmp_path / "data", database_url=other, object_store_url=str(anew))) as restored:
        check_restored(restored, known)


def test_a_damaged_backup_is_refused_before_anything_is_restored(tmp_path):
    data, kept, anew = tmp_path / "data", tmp_path / "kept", tmp_path / "anew"
    with closing(open_ledger(data)) as ledger:
        send(ledger, tmp_path / "series", "one")
    follow("backup-sqlite", DATA=data, BACKUP=kept)
    damaged = next(path for path in (kept / "objects").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(AssertionError):
        follow("restore-sqlite", DATA=anew, BACKUP=kept)
    assert not anew.exists()
