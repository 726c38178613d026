"""Where the local Triton cannot run, it says so, and what would help."""

from __future__ import annotations

import platform
import shutil
import sys
from collections import namedtuple

import pytest

from service import triton_install
from service.triton_install import Installation, TritonUnavailable, install
from service.triton_server import Ports

Version = namedtuple("Version", "major minor")


def test_another_processor_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(TritonUnavailable, match="TAGS_ENGINE=embedded"):
        install(tmp_path)


def test_a_python_without_numpy_1_is_refused_unless_another_one_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", Version(3, 13))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TritonUnavailable, match=r"needs Python 3\.11 or 3\.12 on PATH; this is 3\.13"):
        install(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "python3.12" else None)
    assert triton_install._interpreter() == ("/bin/python3.12", "3.12")


def test_a_complete_installation_is_not_made_again(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(triton_install, "_interpreter", lambda: ("/bin/python3.11", "3.11"))
    monkeypatch.setattr(triton_install, "_copy_backend", lambda installation: None)
    monkeypatch.setattr(triton_install, "_find_libpython", lambda installation: None)

    def make(installation: Installation, interpreter: str, requirements: tuple[str, ...]) -> None:
        made.append(requirements)
        installation.server.parent.mkdir(parents=True, exist_ok=True)
        installation.server.touch()

    monkeypatch.setattr(triton_install, "_make_environment", make)
    install(tmp_path)
    installation = install(tmp_path)
    assert len(made) == 1
    assert "numpy<2" in made[0]
    installation.server.unlink()
    install(tmp_path)
    assert len(made) == 2


def test_a_failed_command_tells_what_it_was_for():
    with pytest.raises(TritonUnavailable, match=r"could not try \(no such luck\)"):
        triton_install._run(sys.executable, "-c", "import sys; sys.exit('no such luck')", what="try")


def test_free_ports_differ():
    ports = Ports.free()
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
