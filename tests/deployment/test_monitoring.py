"""Alerts, dashboard and autoscaling: accepted by promtool, on metrics that the code makes, each with its runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import require
from tests.deployment.rendered import OVERLAYS, ROOT, of_kind, pods, run, selected, tool

MONITORING = ROOT / "k8s" / "monitoring"
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
# Of Triton (docs/user_guide/metrics of its release) and of the kubelet.
FOREIGN = {
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_success",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
}
METRIC = re.compile(r"\b(?:tags|nv|kubelet)_[a-z_]+[a-z]\b")


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    adapter = yaml.safe_load((MONITORING / "adapter-rules.yaml").read_text())
    scaled = yaml.safe_load_all((ROOT / "k8s" / "components" / "keda" / "scaled-objects.yaml").read_text())
    return [
        *(rule["expr"] for rule in ALERTS),
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
        *(rule["seriesQuery"] for rule in (*adapter["rules"], *adapter["externalRules"])),
        *(trigger["metadata"]["query"] for item in scaled for trigger in item["spec"]["triggers"]),
    ]


def used() -> set[str]:
    return {name for text in expressions() for name in METRIC.findall(re.sub(r"\{[^}]*\}|by \([^)]*\)", "", text))}


def made() -> set[str]:
    """Every metric that the service declares, with what Prometheus derives of a histogram."""
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    declared = set(re.findall(r'"(tags_[a-z_]+)"', source))
    return declared | {f"{name}{suffix}" for name in declared for suffix in ("_bucket", "_sum", "_count")}


@pytest.mark.parametrize("name", sorted(used()))
def test_each_metric_that_is_asked_for_is_made(name):
    if not name.startswith("tags_"):
        assert name in FOREIGN
        return
    require(name in made(), f"{name} is made nowhere in this tree")


def test_promtool_accepts_the_rules_and_they_fire_as_meant():
    promtool = tool("promtool")
    checked = run(promtool, "check", "rules", MONITORING / "alerts.yaml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    tested = run(promtool, "test", "rules", ROOT / "tests" / "deployment" / "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_each_alert_is_seen_to_fire_and_to_be_silent(alert):
    tests = yaml.safe_load((ROOT / "tests" / "deployment" / "alerts_test.yaml").read_text())["tests"]
    expected = [
        bool(case["exp_alerts"]) for test in tests for case in test["alert_rule_test"] if case["alertname"] == alert
    ]
    assert set(expected) == {True, False}


def test_promtool_accepts_the_compose_stacks_prometheus(tmp_path):
    text = (ROOT / "docker" / "compose" / "prometheus.yml").read_text()
    assert "/etc/prometheus/alerts.yaml" in text
    key = tmp_path / "key"
    key.write_text("x")
    local = tmp_path / "prometheus.yml"
    local.write_text(
        text.replace("/etc/prometheus/alerts.yaml", str(MONITORING / "alerts.yaml")).replace(
            "/secrets/prometheus/key", str(key)
        )
    )
    done = run(tool("promtool"), "check", "config", local)
    assert done.returncode == 0, done.stderr


def scraped(overlay: str, job: dict[str, Any], directory: Path) -> set[tuple[str, str]]:
    """(pod, port) that are left of all ports of all pods, by Prometheus' own relabelling.

    The pods are written down as Kubernetes' discovery would give them: Debian's promtool is built without that.
    """
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["tags"]}}]
    job["static_configs"] = [
        {
            "targets": [f"10.0.0.1:{port['containerPort']}"],
            "labels": {
                "__meta_kubernetes_namespace": "tags",
                "__meta_kubernetes_pod_name": f"{name}-0",
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
                "__meta_kubernetes_pod_container_port_name": port["name"],
            },
        }
        for name, template in pods(overlay)
        for container in template["spec"]["containers"]
        for port in container.get("ports", ())
    ]
    (directory / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    done = run(tool("promtool"), "check", "service-discovery", directory / "prometheus.yml", job["job_name"])
    assert done.returncode == 0, done.stderr
    found = [item for item in json.loads(done.stdout[done.stdout.index("[") :]) if item["labels"]]
    for item in found:
        labels = item["labels"]
        assert (labels["namespace"], labels["job"]) == ("tags", job["job_name"])
        assert labels["pod"] == f"{labels['workload']}-0"
    return {
        (
            item["labels"]["pod"].removesuffix("-0"),
            item["discoveredLabels"]["__meta_kubernetes_pod_container_port_name"],
        )
        for item in found
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_scrapes_each_port_that_is_opened_to_it_and_shows_its_key_to_gateways_alone(overlay, tmp_path):
    (tmp_path / "key").write_text("x")
    text = (MONITORING / "scrape.yaml").read_text().replace("/etc/prometheus/secrets/tags/key", str(tmp_path / "key"))
    with_key, without = yaml.safe_load(text)["scrape_configs"]
    assert with_key["authorization"] == {"credentials_file": str(tmp_path / "key")}
    assert "authorization" not in without
    asked = scraped(overlay, with_key, tmp_path)
    assert asked == {("gateway", "http"), ("worker", "http")}
    assert scraped(overlay, without, tmp_path) == {("triton", "metrics")}
    opened = {
        (name, port["port"])
        for policy in of_kind(overlay, "NetworkPolicy").values()
        for name, template in pods(overlay)
        if selected(policy, template["metadata"]["labels"])
        for rule in policy["spec"].get("ingress", ())
        if {"namespaceSelector": {"matchLabels": {"tags/monitoring": "true"}}} in rule["from"]
        for port in rule["ports"]
    }
    assert opened == asked | {("triton", "metrics")}


def test_every_alert_has_its_section_in_the_runbook_and_no_section_is_left_over():
    sections = re.findall(r"^## (Tags\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    assert sections == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_each_section_says_what_it_means_and_what_to_do():
    text = (ROOT / "docs" / "runbook.md").read_text()
    for section in text.split("\n## Tags")[1:]:
        assert "**Means**" in section, section[:40]
        assert "**Do**" in section, section[:40]


def test_the_autoscalers_ask_for_what_the_adapter_gives():
    adapter = yaml.safe_load((MONITORING / "adapter-rules.yaml").read_text())
    given = {"Pods": {rule["name"]["as"] for rule in adapter["rules"]}}
    given["External"] = {rule["name"]["as"] for rule in adapter["externalRules"]}
    for overlay in OVERLAYS:
        for item in of_kind(overlay, "HorizontalPodAutoscaler").values():
            for metric in item["spec"]["metrics"]:
                assert metric[metric["type"].lower()]["metric"]["name"] in given[metric["type"]]


def test_the_dashboard_is_whole():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids) > 12
    assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert Path(MONITORING / "kustomization.yaml").exists()
