"""docs/deploying-a-checkpoint.md: its command for a TAGS checkpoint gives a bundle, with its example of meta.json."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

from typer.main import get_command  # noqa: E402

from export.__main__ import arguments, command_line  # noqa: E402
from export.checkpoint import read_meta  # noqa: E402
from tests.parity import upstream_files as upstream  # noqa: E402
from tests.parity.little import LITTLE  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deploying-a-checkpoint.md").read_text()
PROGRAM = ".venv-export/bin/python -m "
COMMANDS = [shlex.split(found) for found in re.findall(r"python -m export ([^`\n]+)", PAGE.replace("\\\n", " "))]


def meta_text():
    return re.search(r"```json\n(.+?)```", PAGE, re.S)[1]


def test_the_example_of_meta_is_read():
    assert read_meta(json.loads(meta_text())).targets == ("liver",)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_of_every_command_on_the_page_exists(command):
    subcommand, *words = arguments(command)
    options = get_command(command_line()).commands[subcommand].params
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_page_shows_each_command_of_the_export():
    assert {arguments(command)[0] for command in COMMANDS} == set(get_command(command_line()).commands)


def test_the_command_for_a_tags_checkpoint_writes_the_bundle(tmp_path):
    command = re.search(r"```\n(\S+ -m export --config vit_b --tags .+?)```", PAGE, re.S)[1]
    torch.manual_seed(3)
    torch.save(upstream.tags(LITTLE, upstream.random), tmp_path / "best.pth.tar")
    text = upstream.openai_text(LITTLE.text_width, LITTLE.width, LITTLE.text_depth, upstream.random)
    torch.save(text, tmp_path / "clip.pth")
    (tmp_path / "meta.json").write_text(meta_text())
    words = shlex.split(command.replace("\\\n", " ").removeprefix(PROGRAM))
    done = subprocess.run(  # noqa: S603  # the command of our own page
        [sys.executable, "-m", "tests.parity.in_little", *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "278 keys consumed" in done.stdout
    assert (tmp_path / "bundles" / "vit_b-1.0.0" / "bundle.json").exists()
