"""What a roll-out does to a gateway: it is told to stop while one waits for an answer and another watches events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from demo.answers import zipped
from demo.running import ROOT, free_port, wait_until_ready
from service.dicom.phantom import write_phantom

pytestmark = pytest.mark.slow
DRAIN_S = 30


def test_a_request_under_way_is_answered_and_a_stream_of_events_does_not_hold_the_process(tmp_path):
    phantom = write_phantom(tmp_path / "series")
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    environment = os.environ | {"TAGS_DATA_DIR": str(tmp_path / "data"), "TAGS_DRAIN_S": str(DRAIN_S)}
    with tempfile.TemporaryFile() as log, ThreadPoolExecutor(1) as pool:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)  # noqa: S603
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as client:
                wait_until_ready(client, process, log)
                watching, seen = threading.Event(), []

                def watch() -> None:
                    with client.stream("GET", "/ledger/events") as events:
                        try:
                            for text in events.iter_text():
                                seen.append(text)
                                watching.set()
                        except httpx.TransportError:
                            pass  # cut off, as it should be

                watcher = threading.Thread(target=watch)
                watcher.start()
                assert watching.wait(60)
                answer = pool.submit(
                    client.post,
                    "/segment?format=json",
                    files={"files": ("series.zip", zipped(phantom.directory))},
                    data={"prompts": json.dumps({"points": [{"lps_mm": list(phantom.click_lps_mm)}]})},
                )
                deadline = time.monotonic() + 60
                while "tags_segmentations_running 1.0" not in client.get("/metrics").text:
                    assert time.monotonic() < deadline
                    assert not answer.done()
                process.send_signal(signal.SIGTERM)
                told = time.monotonic()
                assert answer.result(120).status_code == 200
                process.wait(DRAIN_S + 60)
                assert time.monotonic() - told < DRAIN_S + 60
                watcher.join(30)
                assert seen
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
