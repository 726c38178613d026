"""The images: Dockerfiles, names and versions, one release of Triton, and the list for sites without a registry."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.deployment.rendered import OVERLAYS, RELEASE, ROOT, containers, files_of, pods, run, tool


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*Dockerfile")), ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    done = run(tool("hadolint"), path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", sorted((ROOT / "docker").glob("*Dockerfile")), ids=lambda path: path.name)
def test_the_plain_user_of_an_image_may_read_what_was_copied_into_it_under_any_umask(path):
    stage = path.read_text().split("\nFROM ")[-1]
    assert "\nUSER 10001:10001" in stage
    copied = [line for line in stage.splitlines() if line.startswith("COPY ") and "--from=" not in line]
    assert [line for line in copied if not line.startswith("COPY --chmod=0755 ")] == []


def every_image() -> list[tuple[str, str]]:
    """(where, image) of all manifests, the compose file and the Dockerfiles."""
    found = [
        (f"{overlay}/{name}", container["image"])
        for overlay in OVERLAYS
        for name, template in pods(overlay)
        for container in containers(template)
    ]
    for profile in ("cpu", "gpu"):
        done = run(tool("docker-compose"), "--profile", profile, "-f", "docker-compose.yml", "config")
        found += [(f"compose/{name}", item["image"]) for name, item in yaml.safe_load(done.stdout)["services"].items()]
    return found


def test_every_image_has_a_version_and_none_is_the_latest():
    for where, image in every_image():
        registry, _, tag = image.rpartition(":")
        assert "/" in registry, where  # an unqualified name could be anybody's on a public registry
        assert tag not in ("", "latest"), where
        assert "RELEASE" not in image, where


def test_triton_and_tensorrt_are_of_one_release_that_is_named_once():
    nvidia = [image for _, image in every_image() if re.search(r"nvidia|tags-(triton|export)", image)]
    assert len(nvidia) > 6
    assert all(image.endswith(RELEASE) for image in nvidia)
    for path in (ROOT / "docker").glob("*.Dockerfile"):
        for line in path.read_text().splitlines():
            if line.startswith("FROM nvcr.io"):
                assert line.split()[1].endswith(":${TRITON_RELEASE}"), path.name
    naming = [
        path.relative_to(ROOT)
        for path in [*files_of(".yaml", ".yml", ".env", ".sh", ".Dockerfile"), ROOT / "docker-compose.yml"]
        if any(
            RELEASE.split("-")[0] in line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
        )
    ]
    assert naming == [Path("k8s/release/release.env")]


def test_the_list_for_sites_without_a_registry_is_whole():
    tools = {"KUBECTL": tool("kubectl"), "DOCKER_COMPOSE": tool("docker-compose")}
    done = run("scripts/images", "list", **tools)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "k8s" / "images.txt").read_text()
    assert set(done.stdout.split()) == {image for _, image in every_image()}


def test_images_are_saved_and_loaded_whole_or_not_at_all(tmp_path):
    """The engine is a stand-in that writes what it is told to save; the script, sums and lists are the real ones."""
    engine, log, kept = tmp_path / "engine", tmp_path / "log", tmp_path / "kept"
    engine.write_text(
        '#!/bin/sh\necho "$@" >>"$LOG"\n[ "$1" = save ] && echo "archive of $4" >"$3"\nexit 0\n', encoding="utf-8"
    )
    engine.chmod(0o755)
    tools = {"KUBECTL": tool("kubectl"), "CONTAINER_ENGINE": str(engine), "LOG": str(log)}
    assert run("scripts/images", "save", kept, "cpu", "gpu", **tools).returncode == 0
    images = (kept / "images.txt").read_text().split()
    assert len(images) == len(list(kept.glob("*.tar"))) == 4
    assert not [line for line in log.read_text().splitlines() if line.startswith("pull") and "localhost" in line]
    loaded = run("scripts/images", "load", kept, **tools)
    assert loaded.stdout.split("\n")[:-1] == [f"loaded {image}" for image in images]
    pushed = run("scripts/images", "push", kept, "registry.hospital.example/tags", **tools)
    names = {item["newName"] for item in yaml.safe_load(pushed.stdout)["images"]}
    assert all(name.startswith("registry.hospital.example/tags/") for name in names)
    next(kept.glob("*.tar")).write_text("another")
    assert run("scripts/images", "load", kept, **tools).returncode != 0


def test_our_images_carry_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = [image for _, image in every_image() if re.search(r"tags-(gateway|export)", image)]
    assert ours
    assert all(image.split(":")[1].split("_")[0] == version for image in ours)


def test_the_images_install_the_pinned_versions_that_the_project_asks_for():
    pins = (ROOT / "docker" / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["postgres"],
        *project["optional-dependencies"]["s3"],
    ]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9-]+", requirement)[0].lower()
        assert re.search(rf"^{name}==", pins, re.M), f"{name} is not in docker/constraints.txt"
    export = {re.match(r"[A-Za-z0-9-]+", item)[0]: item for item in project["optional-dependencies"]["export"]}
    dockerfile = (ROOT / "docker" / "export.Dockerfile").read_text()
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        assert f" {export[name]} " in dockerfile.replace("\n", " "), name
