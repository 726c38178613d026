"""The manifests: accepted by real tools, and by rules of our own that those tools do not know."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.access.listening import check_listening
from service.settings import Settings
from tests.conftest import require
from tests.deployment.api_server import amount
from tests.deployment.rendered import (
    OVERLAYS,
    ROOT,
    containers,
    environment,
    files_of,
    kustomized,
    objects,
    of_kind,
    pods,
    run,
    selected,
    tool,
)

KUBERNETES = "1.31"  # the oldest that Kubernetes' own project still kept when this was written, and every later one
PROBE_ONLY = {("triton", "http")}  # ports that no policy opens: the kubelet alone reaches them
CHECKOV = ROOT / ".venv-checkov" / "bin"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", [KUBERNETES, "1.37"])
def test_every_object_is_valid_against_kubernetes_own_schema(overlay, version, tmp_path):
    rendered = tmp_path / "all.yaml"
    rendered.write_text(kustomized(f"k8s/overlays/{overlay}"))
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, rendered)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed ") == len(objects(overlay))


@pytest.mark.parametrize("component", ["k8s/monitoring"])
def test_the_other_kustomizations_render(component):
    assert all(item["kind"] == "ConfigMap" for item in yaml.safe_load_all(kustomized(component)))


def site(directory: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """What a kustomization of a site's own, in another place, makes of ours."""
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(document))
    done = run(tool("kubectl"), "kustomize", directory)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def ours(directory: str, seen_from: Path) -> str:
    return os.path.relpath(ROOT / directory, seen_from)


def with_component(name: str, overlay: str, directory: Path) -> list[dict[str, Any]]:
    """An overlay and one of the components that a site may add."""
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [ours(f"k8s/overlays/{overlay}", directory)],
        "components": [ours(f"k8s/components/{name}", directory)],
    }
    return site(directory, document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_keda_takes_the_place_of_the_autoscalers(overlay, tmp_path):
    found = with_component("keda", overlay, tmp_path)
    kinds = [item["kind"] for item in found]
    assert kinds.count("ScaledObject") == 3
    assert "HorizontalPodAutoscaler" not in kinds


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_traces_have_a_way_out_to_the_collector_alone(overlay, tmp_path):
    found = with_component("traces", overlay, tmp_path)
    (policy,) = [item for item in found if item["metadata"]["name"] == "gateway-to-collector"]
    assert policy["metadata"]["namespace"] == "tags"
    (way,) = policy["spec"]["egress"]
    (settings,) = [item for item in found if item["metadata"]["name"].startswith("tags-settings")]
    endpoint = httpx.URL(settings["data"]["TAGS_OTLP_ENDPOINT"])
    assert [port["port"] for port in way["ports"]] == [endpoint.port]
    assert way["to"] == [{"namespaceSelector": {"matchLabels": {"tags/traces": "true"}}}]
    sending = [
        item["spec"]["template"]
        for item in found
        if item["kind"] == "Deployment" and settings["metadata"]["name"] in str(item["spec"]["template"]["spec"])
    ]
    assert len(sending) == 2
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= template["metadata"]["labels"].items() for template in sending)
    rendered = tmp_path / "all.yaml"
    rendered.write_text(yaml.safe_dump_all(found))
    assert run(tool("kubernetes-validate"), "--strict", "-k", KUBERNETES, rendered).returncode == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_site_says_who_its_pacs_is_and_what_is_segmented_as_the_page_shows(overlay, tmp_path):
    page = (ROOT / "docs" / "install.md").read_text()
    document = yaml.safe_load(page[page.index("# kustomization.yaml") :].split("```")[0])
    document["resources"] = [ours(f"k8s/overlays/{overlay}", tmp_path)]
    pacs = (ROOT / "k8s" / "overlays" / overlay / "pacs.yaml").read_text()
    (tmp_path / "pacs.yaml").write_text(pacs.replace("192.0.2.10", "10.20.30.40"))
    (tmp_path / "routing.yaml").write_text("rules: []  # of the site\n")
    found = site(tmp_path, document)
    policies = {item["metadata"]["name"]: str(item) for item in found if item["kind"] == "NetworkPolicy"}
    for name in ("gateway-from-pacs", "gateway-to-pacs"):
        assert "10.20.30.40/32" in policies[name]
        assert "192.0.2.10" not in policies[name]
    (routing,) = [item for item in found if item["metadata"]["name"].startswith("tags-routing")]
    assert routing["data"]["routing.yaml"] == "rules: []  # of the site\n"
    mounted = [
        volume["configMap"]["name"]
        for item in found
        if item["kind"] == "Deployment"
        for volume in item["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "routing"
    ]
    assert mounted == [routing["metadata"]["name"]] * 2


@pytest.mark.slow
def test_checkov_finds_nothing_but_what_is_accepted_with_a_reason(tmp_path):
    checkov = tool("checkov", also=CHECKOV)
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(kustomized(f"k8s/overlays/{overlay}"))
    common = ("--skip-download", "--compact", "--quiet", "--config-file", ROOT / ".checkov.yaml")
    for framework, directory in (("kubernetes", tmp_path), ("dockerfile", ROOT / "docker")):
        done = run(checkov, *common, "--framework", framework, "-d", directory)
        assert done.returncode == 0, done.stdout + done.stderr
        plain = run(checkov, "--skip-download", "--compact", "--framework", framework, "-d", directory)
        assert int(re.search(r"Passed checks: (\d+)", plain.stdout)[1]) > 100  # it did look


def test_each_accepted_finding_has_its_reason():
    lines = (ROOT / ".checkov.yaml").read_text().splitlines()
    accepted = [number for number, line in enumerate(lines) if "- CKV" in line]
    assert accepted
    assert all(lines[number - 1].strip().startswith("#") and len(lines[number - 1]) > 40 for number in accepted)


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_accepts_the_file(profile):
    done = run(tool("docker-compose"), "--profile", profile, "-f", "docker-compose.yml", "config")
    assert (done.returncode, done.stderr) == (0, "")
    services = yaml.safe_load(done.stdout)["services"]
    others = {"postgres", "objects", "orthanc", "ohif", "prometheus", "grafana"}
    assert {"gateway", "worker", f"triton-{profile}"} | others <= services.keys()
    for name, service in services.items():
        assert service.get("mem_limit"), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged")
        assert all(port.get("host_ip") == "127.0.0.1" for port in service.get("ports", ())), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_narrow_and_has_limits(overlay):
    for name, template in pods(overlay):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert pod["priorityClassName"] in of_kind(overlay, "PriorityClass"), name
        assert not any(pod.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")), name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
        common = pod["securityContext"]
        assert common["runAsNonRoot"] is True, name
        assert common["runAsUser"] >= 10000, name
        assert common["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            where = (name, container["name"])
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"][kind].keys(), where
            # A disk that is not limited fills the node's.
        for volume in pod["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), (name, volume["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_gateway_needs_its_engine_to_start_and_not_to_receive(overlay):
    (container,) = of_kind(overlay, "Deployment")["gateway"]["spec"]["template"]["spec"]["containers"]
    asked = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert asked == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/live",
        "livenessProbe": "/health/live",
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_serves_has_all_three_probes_a_drain_a_budget_a_spread_and_an_autoscaler(overlay):
    deployments = of_kind(overlay, "Deployment")
    assert deployments.keys() == {"gateway", "worker", "triton"}
    for name, item in deployments.items():
        (container,) = item["spec"]["template"]["spec"]["containers"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
        asleep = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > asleep, name
        assert item["spec"]["template"]["spec"]["topologySpreadConstraints"], name
        assert "replicas" not in item["spec"], name  # an apply would undo what the autoscaler chose
        labels = item["spec"]["template"]["metadata"]["labels"]
        for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler"):
            assert name in of_kind(overlay, kind), (name, kind)
        chosen = of_kind(overlay, "PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= labels.items(), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_draining_gateway_has_time_for_what_is_under_way(overlay):
    settings = next(item for name, item in of_kind(overlay, "ConfigMap").items() if name.startswith("tags-settings"))
    gateway = of_kind(overlay, "Deployment")["gateway"]["spec"]["template"]["spec"]
    asleep = int(gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert float(settings["data"]["TAGS_DRAIN_S"]) >= Settings().request_timeout_s
    assert gateway["terminationGracePeriodSeconds"] >= asleep + float(settings["data"]["TAGS_DRAIN_S"])


def test_the_ingress_lets_through_what_the_gateway_takes_and_its_disk_holds():
    data = next(item for name, item in of_kind("hospital", "ConfigMap").items() if name.startswith("tags-settings"))
    taken = Settings(max_store_bytes=int(data["data"]["TAGS_MAX_STORE_BYTES"]))
    for name, most_bytes in (("gateway", taken.max_upload_bytes), ("gateway-dicomweb", taken.max_store_bytes)):
        said = of_kind("hospital", "Ingress")[name]["metadata"]["annotations"]
        assert said["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{most_bytes // 2**20}m", name
    assert empty_bytes("hospital", "gateway")["data"] >= 3 * taken.max_store_bytes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_fill_its_volumes_without_being_evicted_for_it(overlay):
    for name, template in pods(overlay):
        (container,) = template["spec"]["containers"]
        limit_bytes = amount(container["resources"]["limits"]["ephemeral-storage"])
        assert limit_bytes >= sum(empty_bytes(overlay, name).values()), name


def empty_bytes(overlay: str, name: str) -> dict[str, float]:
    """The most that each volume of a pod's own may hold on the node's disk."""
    volumes = dict(pods(overlay))[name]["spec"]["volumes"]
    return {
        volume["name"]: amount(volume["emptyDir"]["sizeLimit"])
        for volume in volumes
        if volume.get("emptyDir") and volume["emptyDir"].get("medium") != "Memory"
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_triton_outlives_the_connections_to_it(overlay):
    (container,) = of_kind(overlay, "Deployment")["triton"]["spec"]["template"]["spec"]["containers"]
    age_ms = next(int(item.split("=")[1]) for item in container["args"] if "connection-age=" in item)
    assert int(container["lifecycle"]["preStop"]["exec"]["command"][-1]) > age_ms / 1000
    volumes = {
        item["name"]: item for item in of_kind(overlay, "Deployment")["triton"]["spec"]["template"]["spec"]["volumes"]
    }
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("overlay", ["gpu", "hospital"])
def test_the_job_that_compiles_can_have_the_gpu_that_a_waiting_triton_holds(overlay):
    """Else the two wait for each other where there is one GPU."""
    specs = {name: template["spec"] for name, template in pods(overlay)}
    classes = of_kind(overlay, "PriorityClass")
    job, triton = (classes[specs[name]["priorityClassName"]] for name in ("compile-engines", "triton"))
    assert job["value"] > triton["value"]
    assert job.get("preemptionPolicy", "PreemptLowerPriority") == "PreemptLowerPriority"
    job_spec = of_kind(overlay, "Job")["compile-engines"]["spec"]
    assert "ttlSecondsAfterFinished" not in job_spec  # it would come back with each apply, and take the GPU again


@pytest.mark.parametrize("overlay", ["gpu", "hospital"])
def test_no_roll_out_is_called_failed_while_the_job_may_still_compile(overlay):
    most_s = of_kind(overlay, "Job")["compile-engines"]["spec"]["activeDeadlineSeconds"]
    for name, item in of_kind(overlay, "Deployment").items():
        assert item["spec"]["progressDeadlineSeconds"] > most_s, name


@pytest.mark.parametrize(
    ("driver", "key"),
    [
        ("echo '9.0, NVIDIA H100 80GB HBM3'", "sm9.0-NVIDIA-H100-80GB-HBM3_26.04-py3_e3b0c44298fc\n"),
        ("echo 'no driver yet' >&2; exit 9", ""),
    ],
)
def test_engines_have_the_name_of_their_gpu_or_none_at_all(driver, key, tmp_path):
    """A name without a GPU in it would be waited for in vain, or be compiled for nobody."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "bundle.json").write_text("")
    script = (ROOT / "k8s" / "components" / "gpu" / "engine-key.sh").read_text().replace("/bundle/", f"{tmp_path}/")
    done = run("sh", "-c", script, PATH=f"{tmp_path}:/usr/bin:/bin", TRITON_RELEASE="26.04-py3")
    assert (done.stdout, done.returncode == 0) == (key, bool(key))


def test_a_waiting_triton_gives_its_gpu_back_when_it_is_told_to(tmp_path):
    scripts = ROOT / "k8s" / "components" / "gpu"
    (tmp_path / "engine-key.sh").write_text("echo key\n")
    script = (scripts / "wait-for-engines.sh").read_text().replace("/etc/tags/engines", str(tmp_path))
    waiting = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert "waiting for key" in waiting.stdout.readline()
        waiting.terminate()
        assert waiting.wait(10) == 143  # by itself: as the first process of a container it would not be ended by TERM
    finally:
        waiting.kill()
        waiting.stdout.close()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_denied_and_each_port_is_opened_to_named_peers_or_to_nobody(overlay):
    policies = of_kind(overlay, "NetworkPolicy")
    deny = policies["default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(way, ()):
                assert rule.get(peers), f"{name} opens to everyone"
                assert rule.get("ports"), f"{name} opens every port"
                assert all(peer.get("ipBlock", {}).get("cidr") not in ("0.0.0.0/0", "::/0") for peer in rule[peers])
                assert all(peer not in ({"podSelector": {}}, {"namespaceSelector": {}}) for peer in rule[peers])
    for name, template in pods(overlay):
        labels = template["metadata"]["labels"]
        opened = {
            port["port"]
            for policy in policies.values()
            if selected(policy, labels)
            for rule in policy["spec"].get("ingress", ())
            for port in rule["ports"]
        }
        for container in containers(template):
            for port in container.get("ports", ()):
                covered = bool({port["name"], port["containerPort"]} & opened)
                assert covered != ((name, port["name"]) in PROBE_ONLY), (name, port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_triton_is_reached_by_gateways_and_prometheus_alone(overlay):
    labels = next(template for name, template in pods(overlay) if name == "triton")["metadata"]["labels"]
    let_in = [
        (peer, port["port"])
        for policy in of_kind(overlay, "NetworkPolicy").values()
        if selected(policy, labels)
        for rule in policy["spec"].get("ingress", ())
        for peer in rule["from"]
        for port in rule["ports"]
    ]
    assert sorted(let_in, key=str) == [
        ({"namespaceSelector": {"matchLabels": {"tags/monitoring": "true"}}}, "metrics"),
        ({"podSelector": {"matchLabels": {"tags/uses-triton": "true"}}}, "grpc"),
    ]
    users = {name for name, template in pods(overlay) if "tags/uses-triton" in template["metadata"]["labels"]}
    assert users == {"gateway", "worker"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_namespace_that_a_policy_names_by_our_label_is_given_it_by_a_command_of_the_page(overlay):
    page = (ROOT / "docs" / "install.md").read_text()
    labels = set(re.findall(r"'(tags/[a-z-]+)': 'true'", str(of_kind(overlay, "NetworkPolicy"))))
    given = set(re.findall(r"kubectl label namespace \S+ (tags/[a-z]+)=true", page))
    of_pods = {label for _, template in pods(overlay) for label in template["metadata"]["labels"]}
    assert labels - of_pods
    assert labels - of_pods <= given


def test_the_watchdog_goes_through_the_ingress_by_its_address_and_by_its_pods():
    """Inside the cluster the address is often exchanged for a pod's before a policy sees it."""
    assert environment("hospital", "worker")["TAGS_PUBLIC_URL"].startswith("https://")
    ways = of_kind("hospital", "NetworkPolicy")["gateway-to-stores"]["spec"]["egress"]
    let_in = of_kind("hospital", "NetworkPolicy")["gateway-from-ingress"]["spec"]["ingress"][0]["from"]
    (way,) = [way for way in ways if all(peer in way["to"] for peer in let_in)]
    assert [peer for peer in way["to"] if "ipBlock" in peer]


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_what_must_lie_on_one_node_may_leave_it_together(overlay):
    """Else a drain waits for a successor that can start nowhere."""
    for name, item in of_kind(overlay, "PodDisruptionBudget").items():
        assert item["spec"]["maxUnavailable"] == "100%", name
    bound = [name for name, template in pods(overlay) if "podAffinity" in template["spec"].get("affinity", {})]
    assert bound == ["gateway", "worker"]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_each_file_that_a_setting_names_lies_on_a_mount(overlay, name):
    (container,) = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]["containers"]
    mounted = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"])
    named = {variable: value for variable, value in environment(overlay, name).items() if value.startswith("/")}
    assert len(named) >= 3
    assert not [variable for variable, value in named.items() if not value.startswith(mounted)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_variable_stands_after_those_that_it_is_made_of(overlay):
    """Kubernetes puts in what it has read already, and leaves `$(NAME)` as it is else."""
    for name, template in pods(overlay):
        for container in containers(template):
            known = set[str]()
            for variable in container.get("env", ()):
                asked = set(re.findall(r"\$\((\w+)\)", variable.get("value", "")))
                assert asked <= known, (name, container["name"], variable)
                known.add(variable["name"])
            for word in (*container.get("command", ()), *container.get("args", ())):
                assert not re.search(r"\$\(\w+\)", word), (name, word)  # a shell's would be taken for one


def test_the_hospitals_own_authorities_are_trusted_wherever_the_service_calls():
    """Its certificates are seldom of a public authority; and libpq's verify-full fails without a file to trust."""
    page = (ROOT / "docs" / "install.md").read_text()
    (key,) = re.findall(r"create secret generic tags-authorities --from-file=(\S+)", page)
    file = f"/etc/tags/authorities/{key}"
    for name in ("gateway", "worker"):
        found = environment("hospital", name)
        for variable in ("TAGS_OIDC_CA_FILE", "TAGS_AUDIT_SYSLOG_CA_FILE", "TAGS_PUBLIC_CA_FILE", "AWS_CA_BUNDLE"):
            assert found[variable] == file, (name, variable)
        spec = of_kind("hospital", "Deployment")[name]["spec"]["template"]["spec"]
        (volume,) = [item for item in spec["volumes"] if item["name"] == "authorities"]
        assert volume["secret"] == {"secretName": "tags-authorities"}
    (database,) = re.findall(r"tags-database --from-literal=url='(\S+)'", page)
    asked = dict(httpx.URL(database).params)
    assert asked == {"sslmode": "verify-full", "sslrootcert": file}


def environment_names() -> set[str]:
    """Every TAGS_ variable that a manifest, the compose file or an image sets."""
    texts = [kustomized(f"k8s/overlays/{overlay}") for overlay in OVERLAYS]
    texts += [path.read_text() for path in files_of(".Dockerfile", ".sh")] + [(ROOT / "docker-compose.yml").read_text()]
    return set(re.findall(r"\bTAGS_[A-Z0-9_]+", "\n".join(texts)))


@pytest.mark.parametrize("name", sorted(environment_names()))
def test_each_variable_is_a_setting(name):
    require(name.removeprefix("TAGS_").lower() in Settings.model_fields, f"{name} is no setting of this tree")


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_gateways_and_workers_start_with_what_the_settings_files_say(overlay, name, monkeypatch):
    found = environment(overlay, name)
    for variable in filter(lambda variable: variable.startswith("TAGS_"), os.environ.copy()):
        monkeypatch.delenv(variable)
    for variable, value in found.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    check_listening(settings.model_copy(update={"host": "0.0.0.0"}))  # noqa: S104  # the image's
    assert (settings.engine, settings.triton_url) == ("triton", "dns:///triton:8001")
    assert settings.worker == (name == "worker")
    assert str(settings.routing_file) == "/etc/tags/routing/routing.yaml"
    for written in (path for path in (ROOT / "k8s").rglob("settings.env") if path.parent.name in ("base", overlay)):
        for line in filter(lambda line: "=" in line and not line.startswith("#"), written.read_text().splitlines()):
            variable, value = line.split("=", 1)
            assert variable in found
            assert found[variable] == value or variable in in_the_container_itself(overlay, name), variable


def in_the_container_itself(overlay: str, name: str) -> set[str]:
    """Variables that go before those of the ConfigMap."""
    (container,) = of_kind(overlay, "Deployment")[name]["spec"]["template"]["spec"]["containers"]
    return {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_an_overlay_adds_to_the_lists_of_the_base_and_takes_nothing_away(overlay, name):
    written = next(iter(yaml.safe_load_all((ROOT / "k8s" / "base" / f"{name}.yaml").read_text())))
    assert (written["kind"], written["metadata"]["name"]) == ("Deployment", name)
    lost = missing(written["spec"]["template"], of_kind(overlay, "Deployment")[name]["spec"]["template"])
    assert not lost - {"spec.volumes[data].emptyDir", "spec.volumes[data].emptyDir.sizeLimit"}, lost


def missing(base: Any, rendered: Any, path: str = "") -> set[str]:
    """Places that the base has and the rendering has not. An item of a list is known by its name, or by its kind."""
    if isinstance(base, list):
        base, rendered = ({known_by(item): item for item in items} for items in (base, rendered))
        return set().union(
            *(missing(base[key], rendered.get(key), f"{path}[{key}]") if key in rendered else {f"{path}[{key}]"}
              for key in base)
        )  # fmt: skip
    if not isinstance(base, dict):
        return set()
    return set().union(
        *(missing(value, rendered[key], f"{path}.{key}".lstrip(".")) if key in rendered
          else {f"{path}.{key}".lstrip(".")} for key, value in base.items())
    )  # fmt: skip


def known_by(item: Any) -> str:
    return item.get("name") or item.get("topologyKey") or next(iter(item)) if isinstance(item, dict) else str(item)


@pytest.mark.parametrize("path", files_of(".sh"), ids=lambda path: path.name)
def test_the_scripts_are_shell(path):
    assert run("sh", "-n", path).returncode == 0


def test_tritons_canary_needs_nothing_but_python():
    tree = ast.parse((ROOT / "k8s" / "base" / "triton_canary.py").read_text())
    imported = {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert imported <= {"json", "struct", "sys", "urllib"}
