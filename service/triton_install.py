"""A real `tritonserver` on this machine without Docker or a GPU: the binary of NVIDIA's pytriton wheel, installed once.

What enters: a directory of our own. What leaves: an `Installation`: the server, its Python backend, and a virtual
environment for the backend's stubs (numpy 1 and ONNX Runtime; the gateway's environment needs numpy 2). A lock file
keeps two processes from installing at once; a stamp, written last, says that the directory is complete.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

SERVER_WHEEL = "nvidia-pytriton==0.7.0"  # carries Triton 2.51.0 (24.10) with the Python backend only
PYTHONS = ("3.11", "3.12")  # the wheel has stubs for others too, but they need numpy 1, which ends with 3.12
INSTALL_TIMEOUT_S = 900  # 130 MB to download
COMMAND_TIMEOUT_S = 120


class TritonUnavailable(RuntimeError):
    """The local Triton cannot be installed or started; the text says why and what to do."""


@dataclass(frozen=True)
class Installation:
    """An installed Triton. Everything lies below `directory`."""

    directory: Path
    python: str  # "3.11"

    @property
    def environment(self) -> Path:
        return self.directory / "environment"

    @property
    def site_packages(self) -> Path:
        return self.environment / "lib" / f"python{self.python}" / "site-packages"

    @property
    def wheel(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        return self.wheel / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.directory / "backends"

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Where the loader finds what the server and the stubs are linked to, libpython last."""
        return (self.site_packages / "nvidia_pytriton.libs", self.directory / "libpython")

    def variables(self) -> dict[str, str]:
        """The environment of the server's process. The stub finds its Python by PATH, its packages by PYTHONPATH."""
        return {
            "PATH": f"{self.environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(self.site_packages),
            "LD_LIBRARY_PATH": ":".join(map(str, self.libraries)),
            "LANG": "C.UTF-8",
        }


def install(directory: Path) -> Installation:
    """The installation in `directory`, made there if it is absent, incomplete or of other versions.

    Raises: TritonUnavailable: no suitable platform, Python or package index.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    interpreter, python = _interpreter()
    installation = Installation(directory, python)
    requirements = ("numpy<2", f"onnxruntime=={_minor(version('onnxruntime'))}.*")
    stamp, wanted = directory / "complete", "\n".join((python, SERVER_WHEEL, *requirements))
    with _locked(directory / "lock"):
        if not (stamp.is_file() and stamp.read_text() == wanted and installation.server.is_file()):
            stamp.unlink(missing_ok=True)
            _make_environment(installation, interpreter, requirements)
            _copy_backend(installation)
            _find_libpython(installation)
            stamp.write_text(wanted)
    return installation


def _minor(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _interpreter() -> tuple[str, str]:
    """(executable, "3.11") for the stubs: this Python if it will do, else another one on PATH."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonUnavailable("the local Triton runs on 64-bit x86 Linux only; set TAGS_ENGINE=embedded elsewhere")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if ours in PYTHONS:
        return sys.executable, ours
    for python in PYTHONS:
        if executable := shutil.which(f"python{python}"):
            return executable, python
    raise TritonUnavailable(f"the local Triton needs Python {' or '.join(PYTHONS)} on PATH; this is {ours}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_environment(installation: Installation, interpreter: str, requirements: tuple[str, ...]) -> None:
    _run(interpreter, "-m", "venv", "--clear", str(installation.environment), what="create a virtual environment")
    python = str(installation.environment / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, *requirements, what="install ONNX Runtime for Triton; a package index must be in reach")
    # Without its dependencies: pytriton's own client and web server are not used, only the binary.
    _run(*pip, "--no-deps", SERVER_WHEEL, what="install Triton; it needs glibc 2.35 and a package index in reach")


def _copy_backend(installation: Installation) -> None:
    """The Python backend with the one stub that fits, executable: a wheel keeps no mode bits that pip would honour."""
    target = installation.backends / "python"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(installation.wheel / "backends" / "python", target)
    stub = installation.wheel / "python_backend_stubs" / installation.python / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonUnavailable(f"the Triton wheel carries no stub for Python {installation.python}")
    shutil.copy(stub, target / stub.name)
    for executable in (target / stub.name, installation.server):
        executable.chmod(0o755)


def _find_libpython(installation: Installation) -> None:
    """The stub embeds Python as a shared library, which Debian packs apart from `python3`.

    Linked from where this Python keeps it; else unpacked from Debian's package, which needs no root.
    """
    folder, name = installation.directory / "libpython", f"libpython{installation.python}.so.1.0"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    python = str(installation.environment / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'), sysconfig.get_config_var('MULTIARCH') or '')"
    library_dir, multiarch = _run(python, "-c", where, what="ask Python for its library").rstrip("\n").split(" ")
    for candidate in (Path(library_dir) / name, Path(library_dir) / multiarch / name, Path("/lib") / multiarch / name):
        if candidate.is_file():
            (folder / name).symlink_to(candidate)
            return
    package = f"libpython{installation.python}"
    advice = f"find {name}; run: apt-get install {package}"
    _run("apt-get", "download", "--quiet", package, what=advice, cwd=folder)
    for archive in folder.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(archive), str(folder), what=advice)
    for unpacked in folder.rglob(name):
        (folder / name).symlink_to(unpacked)
        return
    raise TritonUnavailable(f"could not {advice}")


def _run(*command: str, what: str, cwd: Path | None = None) -> str:
    """Standard output. Raises: TritonUnavailable: it failed, with its last line of standard error."""
    limit = INSTALL_TIMEOUT_S if "pip" in command else COMMAND_TIMEOUT_S
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=limit, check=True)  # noqa: S603
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        raise TritonUnavailable(f"could not {what} ({' '.join(last)})") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TritonUnavailable(f"could not {what}") from error
    return done.stdout
