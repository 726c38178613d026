"""schemathesis, as the program it is, against a gateway behind a real socket: of all that it tries, no 5xx."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.pacs.live import live_gateway
from tests.pacs.stow import store
from tests.phantoms import write_ct_series

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, SEED = 30, 7
ENDLESS = "/events$"  # streams; they have tests of their own
TRIED = ("/jobs/{job_id}", "/dicom-web/studies/{study}/series/{series}/metadata", "/ledger/studies/{study}/complete")


@pytest.mark.slow
def test_no_request_that_the_document_describes_is_answered_with_5xx(tmp_path: Path):
    require(importlib.util.find_spec("schemathesis") is not None, "schemathesis is not installed")
    sent = write_ct_series(tmp_path / "sent", shape_zyx=(2, 8, 8))
    with live_gateway(tmp_path / "data", worker=False) as gateway:
        store(gateway.client, sent.paths)
        job = gateway.client.post(
            "/segment",
            files=[("files", path.read_bytes()) for path in sent.paths],
            data={"prompts": '{"text": "t"}'},
            headers={"Prefer": "respond-async"},
        ).json()["id"]
        (held,) = gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)[:1]
        uids = {"study": held.study_instance_uid, "series": held.series_instance_uid, "instance": held.sop_instance_uid}
        (tmp_path / "held.json").write_text(json.dumps(uids | {"job_id": job, "number": 1, "numbers": "1"}))
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json",
            "--exclude-path-regex", ENDLESS, "--checks", "not_a_server_error", "--max-examples", str(EXAMPLES),
            "--phases", "examples,coverage,fuzzing", "--seed", str(SEED), "--request-timeout", "60", "--no-color",
        ]  # fmt: skip
        environment = os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.security.schemathesis_hooks",
            "HELD": str(tmp_path / "held.json"),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        metrics = gateway.client.get("/metrics").text
    for route in TRIED:
        assert f'tags_requests_total{{route="{route}",slug="",status="200"}}' in metrics, route  # beyond "not found"
    assert 'status="50' not in metrics
