"""What the deployment files say, through the tools that read them: kustomize, Docker Compose, YAML."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("cpu", "gpu", "hospital")
WORKLOADS = ("Deployment", "Job", "StatefulSet", "DaemonSet", "CronJob")
RELEASE = dict(
    line.split("=", 1)
    for line in (ROOT / "k8s" / "release" / "release.env").read_text().splitlines()
    if line and not line.startswith("#")
)["TRITON_RELEASE"]


def tool(name: str, *, also: Path | None = None) -> str:
    """A program of the test environment (or of `also`, another one's), or of the system."""
    for folder in (Path(sys.executable).parent, *([also] if also else [])):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    require(found is not None, f"{name} is not installed; `make test` installs it")
    assert found
    return found


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, in the repository."""
    return subprocess.run(  # noqa: S603
        list(map(str, command)), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@cache
def kustomized(directory: str) -> str:
    """YAML of a kustomization, as `kubectl apply -k` would send it."""
    done = run(tool("kubectl"), "kustomize", ROOT / directory)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # deprecated fields are warned about there
    return done.stdout


def objects(overlay: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(kustomized(f"k8s/overlays/{overlay}")) if item]


def of_kind(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects(overlay) if item["kind"] == kind}


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the workload, its pod template)."""
    for item in objects(overlay):
        if item["kind"] in WORKLOADS:
            yield item["metadata"]["name"], item["spec"]["template"]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def program(directory: Path, name: str, command: str) -> None:
    """Put a program into a folder that will be on a PATH."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


def selected(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a NetworkPolicy is for pods with these labels."""
    selector = policy["spec"]["podSelector"]
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        rule["operator"] == "In" and labels.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", ())
    )


def files_of(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for folder in ("k8s", "docker", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and path.is_file()
    )


def environment(overlay: str, name: str) -> dict[str, str]:
    """What the first container of a Deployment finds in its environment, but for what only the cluster knows."""
    container = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]["containers"][0]
    maps, found = of_kind(overlay, "ConfigMap"), dict[str, str]()
    for source in container.get("envFrom", ()):
        if reference := source.get("configMapRef"):
            found |= maps[reference["name"]]["data"]
    return found | {variable["name"]: variable["value"] for variable in container.get("env", ()) if "value" in variable}
