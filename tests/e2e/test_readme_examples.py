"""The README's examples, run as they stand there against the real service; each quoted answer is compared.

An example is a line after `$ ` in a block marked `console`, with its continuation lines; what follows up to the next
one is the answer. `...` in it stands for anything within a line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.__main__ import write_examples
from tests.conftest import require

pytestmark = pytest.mark.slow

README = Path(__file__).resolve().parents[2] / "README.md"
REQUEST_TIMEOUT_S = 300
DOCUMENTED = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Example:
    """One command and the answer that the README quotes."""

    command: str
    answer: str


def read_blocks(text: str) -> list[list[Example]]:
    """The examples of each block, in order: a later command of a block may need what an earlier one wrote."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S)
    return [[Example(*_split(part)) for part in re.split(r"^\$ ", block, flags=re.M)[1:]] for block in blocks]


def _split(part: str) -> tuple[str, str]:
    command, rest = [], part.splitlines()
    while rest:
        command.append(rest.pop(0))
        if not command[-1].endswith("\\"):
            break
    return "\n".join(command), "\n".join(rest)


def pattern(answer: str) -> str:
    return re.escape(answer).replace(re.escape("..."), "[^\n]*")


BLOCKS = read_blocks(README.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom_ct):
    """What demo/out holds after `make demo`, as far as the examples use it."""
    directory = tmp_path_factory.mktemp("readme")
    shutil.copytree(phantom_ct.directory, directory / "series")
    write_examples(directory, phantom_ct.truth, phantom_ct.upload)
    (directory / "click").mkdir()
    (directory / "click" / "README.txt").write_text("not an image\n")
    return directory


def test_the_readme_has_its_examples():
    commands = " ".join(example.command for block in BLOCKS for example in block)
    assert len(BLOCKS) == 8
    assert all(word in commands for word in ("format=nifti", "two_series", "truncated", "2G", "README.txt"))


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_gives_the_answer_that_the_readme_quotes(service, folder, block):
    require(shutil.which("curl") is not None, "curl is not installed")
    for example in block:
        command = example.command.replace(DOCUMENTED, str(service.base_url).rstrip("/"))
        done = subprocess.run(  # noqa: S603
            ["/bin/bash", "-o", "pipefail", "-c", command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=REQUEST_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        answered = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        assert re.fullmatch(pattern(example.answer), answered), f"{example.command}\ngave\n{answered}"
