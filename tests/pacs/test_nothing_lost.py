"""Nothing is lost: gateway and worker are killed (-9) again and again while senders send and retry.

Afterwards every acknowledged instance is there and intact, every job has ended once, and the destination holds exactly
the results that the ledger names, each once. The counts are printed (`pytest -s`).
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydicom import dcmread
from pynetdicom import AE

from demo.running import ROOT, free_port
from service.dicom.facts import read_facts
from service.ledger.jobs import JobView
from service.ledger.ledger import open_ledger
from service.ledger.report import reconcile
from tests.conftest import require
from tests.pacs.fake_pacs import FakePacs, fake_pacs
from tests.pacs.stow import CONTENT_TYPE, body
from tests.phantoms import PhantomSeries, write_ct_series

# pynetdicom leaves the socket of a refused connection to the garbage collector, which warns.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
SETTLE_S = 900  # for what is left once the killing has ended
LEASE_S = 3.0
POSTGRES = Path("/usr/lib/postgresql")


@dataclass
class Replica:
    """One gateway and one worker on the shared ledger, by their pids."""

    settings: dict[str, Any]
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['port']}"


class Nursery:
    """Starts processes by forking; see tests/pacs/nursery.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pacs.nursery"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def start(self, kind: str, replica: Replica) -> None:
        print(json.dumps({"kind": kind, "settings": replica.settings}), file=self._process.stdin, flush=True)
        replica.pids[kind] = int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def start_s(replica: Replica) -> float:
    """Seconds until a gateway answers on this machine as it is now; killing much faster would only test the start."""
    started = time.monotonic()
    while time.monotonic() - started < 60:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{replica.url}/health/live", timeout=5, trust_env=False).is_success:
                return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError("the gateway did not start")


@dataclass
class Sent:
    """What senders were told is stored: digest by SOP Instance UID."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    retries: int = 0


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(
    directory: Path, pacs: FakePacs, *, replicas: int, database_url: str = ""
) -> Iterator[tuple[Nursery, list[Replica]]]:
    routing = directory / "routing.yaml"
    prompts = {"text": "liver tumour"}
    rule = {
        "name": "any",
        "match": {"Modality": "CT"},
        "prompts": prompts,
        "outputs": ["seg"],
        "destinations": ["pacs"],
    }
    destinations = {"pacs": {"stow": {"url": pacs.url, "timeout_s": 10}}}
    routing.write_text(
        yaml.safe_dump({"completeness": {"quiet_s": 2.0}, "destinations": destinations, "rules": [rule]})
    )
    common = {
        "data_dir": str(directory / "data"), "database_url": database_url, "routing_file": str(routing),
        "worker": False, "job_lease_s": LEASE_S, "job_attempts": 500, "delivery_attempts": 500, "min_free_bytes": 0,
        "max_receiving": 64,
    }  # fmt: skip
    started = [Replica(common | {"port": free_port(), "dimse_port": free_port()}) for _ in range(replicas)]
    nursery = Nursery()
    try:
        for replica in started:
            for kind in ("gateway", "worker"):
                nursery.start(kind, replica)
        yield nursery, started
    finally:
        for replica in started:
            for pid in replica.pids.values():
                kill(pid)
        nursery.close()


def send_by_stow(phantom: PhantomSeries, replicas: list[Replica], sent: Sent, stop: threading.Event) -> None:
    content, number = body(phantom.paths), 0
    while not stop.is_set():
        url = f"{replicas[number % len(replicas)].url}/dicom-web/studies"
        number += 1
        try:
            answer = httpx.post(
                url, content=content, headers={"content-type": CONTENT_TYPE}, timeout=20, trust_env=False
            )
            if answer.status_code == 200:
                assert len(answer.json()["00081199"]["Value"]) == len(phantom.paths)
                sent.acknowledged |= {
                    read_facts(path).sop_instance_uid: read_facts(path).digest for path in phantom.paths
                }
                return
        except httpx.HTTPError:
            pass
        sent.retries += 1
        time.sleep(0.1)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def send_by_c_store(phantom: PhantomSeries, replicas: list[Replica], sent: Sent, stop: threading.Event) -> None:
    left, number = list(phantom.paths), 0
    while left and not stop.is_set():
        ae = AE(ae_title="MODALITY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 10
        first = dcmread(left[0], stop_before_pixels=True)
        ae.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
        port = replicas[number % len(replicas)].settings["dimse_port"]
        number += 1
        if not listens(port):
            time.sleep(0.1)
            continue
        association = ae.associate("127.0.0.1", port, ae_title="TAGS")
        while association.is_established and left:
            try:
                status = association.send_c_store(left[0])
            except (RuntimeError, ValueError, AttributeError):
                break
            if status.get("Status") != 0x0000:
                break
            facts = read_facts(left.pop(0))
            sent.acknowledged[facts.sop_instance_uid] = facts.digest
        if association.is_established:
            association.release()
        sent.retries += bool(left)
        time.sleep(0.1)


def sending(
    phantoms: list[PhantomSeries], replicas: list[Replica], sent: Sent, stop: threading.Event
) -> list[threading.Thread]:
    """Four senders by STOW-RS, one by C-STORE, each with its share of the studies."""
    ways = [send_by_stow] * 4 + [send_by_c_store]

    def share(number: int) -> None:
        for phantom in phantoms[number :: len(ways)]:
            ways[number](phantom, replicas, sent, stop)
            time.sleep(random.uniform(0, 2))

    threads = [threading.Thread(target=share, args=(number,), daemon=True) for number in range(len(ways))]
    for thread in threads:
        thread.start()
    return threads


def check(directory: Path, database_url: str, sent: Sent, pacs: FakePacs) -> str:
    """Wait for the end, then hold ledger, objects and destination to each other. Returns: the counts, in words."""
    ledger = open_ledger(directory / "data", database_url=database_url)
    try:
        deadline = time.monotonic() + SETTLE_S
        while reconcile(ledger.database).open and time.monotonic() < deadline:
            time.sleep(0.5)
        report = reconcile(ledger.database)
        assert report.open == (), report
        assert report.balanced

        held = {
            item.sop_instance_uid: item for item in ledger.series.instances(sop_instance_uids=list(sent.acknowledged))
        }
        assert held.keys() == sent.acknowledged.keys()
        for uid, digest in sent.acknowledged.items():
            (path,) = ledger.store.fetch([held[uid].object_key], directory)
            assert read_facts(path).digest == digest

        jobs = ledger.jobs.listed(limit=100_000)
        segmentations = [job for job in jobs if job.kind == "series"]
        assert {job.state for job in segmentations} <= {"done", "cancelled"}
        assert {job.reason for job in segmentations if job.state == "cancelled"} <= {"superseded"}
        keys = {(job.series_instance_uid, job.series_revision) for job in segmentations}
        assert len(keys) == len(segmentations)
        results = [uid for job in segmentations if job.state == "done" for uid in job.output["sop_instance_uids"]]
        deliveries = [job for job in jobs if job.kind == "delivery"]
        assert {job.state for job in deliveries} == {"done"}
        assert len(deliveries) == len(done_with_results(segmentations))
        assert sorted(results) == sorted(pacs.held)  # each result once, and none of a worker that was overtaken
        assert len(set(results)) == len(results)
        twice = sum(count > 1 for count in pacs.posts.values())
        return (
            f"{len(held)} acknowledged instances there and intact, {len(segmentations)} segmentations and "
            f"{len(deliveries)} deliveries ended once, {len(results)} results held once ({twice} sent again), "
            f"{sum(job.attempts > 1 for job in jobs)} jobs begun more than once, {sent.retries} sender retries"
        )
    finally:
        ledger.close()


def done_with_results(segmentations: list[JobView]) -> list[JobView]:
    return [job for job in segmentations if job.state == "done" and job.output["sop_instance_uids"]]


def phantoms(directory: Path, count: int) -> list[PhantomSeries]:
    return [
        write_ct_series(directory / str(number), shape_zyx=(6, 24, 24), study=f"study {number}")
        for number in range(count)
    ]


def test_nothing_is_lost_while_gateway_and_worker_are_killed_200_times(tmp_path, capsys):
    kills, sent, stop = 0, Sent(), threading.Event()
    with fake_pacs() as pacs, cluster(tmp_path, pacs, replicas=1) as (nursery, replicas):
        longest_s = 1.2 + start_s(replicas[0])
        senders = sending(phantoms(tmp_path / "sent", 40), replicas, sent, stop)
        chance = random.Random(20261125)
        while kills < 200:
            time.sleep(chance.uniform(0.05, longest_s))
            kind = chance.choice(("gateway", "worker"))
            kill(replicas[0].pids[kind])
            nursery.start(kind, replicas[0])
            kills += 1
        for thread in senders:
            thread.join(SETTLE_S)
        assert len(sent.acknowledged) == 40 * 6
        counts = check(tmp_path, "", sent, pacs)
    gc.collect()
    with capsys.disabled():
        print(f"\n{kills} kills: {counts}")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A PostgreSQL server of the test's own. Yields: its URL, and the command that restarts it at once."""
    binaries = sorted(POSTGRES.glob("*/bin"))
    require(bool(binaries) and shutil.which("runuser") is not None, "postgresql is not installed")
    directory, port = Path("/tmp") / f"tags-postgres-{os.getpid()}", free_port()  # noqa: S108  the server's user must reach it
    directory.mkdir(mode=0o700)
    shutil.chown(directory, "postgres")

    def run(*command: str) -> list[str]:
        return ["runuser", "-u", "postgres", "--", str(binaries[-1] / command[0]), *command[1:]]

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
    control = run("pg_ctl", "-D", str(directory / "data"), "-l", str(directory / "log"), "-w", "-o", options)
    try:
        subprocess.run(run("initdb", "-D", str(directory / "data"), "-A", "trust"), check=True, capture_output=True)  # noqa: S603
        subprocess.run([*control, "start"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", [*control, "-m", "immediate", "restart"]
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_of_two_replicas_on_postgresql_one_goes_on_where_the_other_is_killed_and_the_database_restarts(
    tmp_path, postgres, capsys
):
    url, restart = postgres
    kills, sent, stop = 0, Sent(), threading.Event()
    with fake_pacs() as pacs, cluster(tmp_path, pacs, replicas=2, database_url=url) as (nursery, replicas):
        senders = sending(phantoms(tmp_path / "sent", 20), replicas, sent, stop)
        chance = random.Random(7)
        while kills < 30:
            time.sleep(chance.uniform(0.1, 1.5))
            kind = chance.choice(("gateway", "worker"))
            kill(replicas[0].pids[kind])
            nursery.start(kind, replicas[0])
            kills += 1
            if kills == 15:
                subprocess.run(restart, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        for pid in replicas[0].pids.values():
            kill(pid)  # for good: the other has to finish
        for thread in senders:
            thread.join(SETTLE_S)
        assert len(sent.acknowledged) == 20 * 6
        counts = check(tmp_path, url, sent, pacs)
    gc.collect()
    with capsys.disabled():
        print(f"\ntwo replicas, {kills + 2} kills, one database restart: {counts}")
