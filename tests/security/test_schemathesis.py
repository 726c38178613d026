"""schemathesis, as the program it is, against a gateway behind a real socket: of all that it tries, no 5xx."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.pacs.live import live_gateway
from tests.pacs.stow import store
from tests.phantoms import write_ct_series

EXAMPLES, SEED = 20, 7
ENDLESS = "/events$"  # streams; they have tests of their own


@pytest.mark.slow
def test_no_request_that_the_document_describes_is_answered_with_5xx(tmp_path: Path):
    require(importlib.util.find_spec("schemathesis") is not None, "schemathesis is not installed")
    with live_gateway(tmp_path / "data", worker=False) as gateway:
        store(gateway.client, write_ct_series(tmp_path / "sent", shape_zyx=(2, 8, 8)).paths)
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json",
            "--exclude-path-regex", ENDLESS, "--checks", "not_a_server_error", "--max-examples", str(EXAMPLES),
            "--phases", "examples,fuzzing", "--seed", str(SEED), "--request-timeout", "60", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        metrics = gateway.client.get("/metrics").text
    assert 'route="/segment"' in metrics  # it was there
    assert 'status="500"' not in metrics
