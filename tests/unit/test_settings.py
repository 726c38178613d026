"""Settings: documented, frozen, from the environment."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name):
    assert len(Settings.model_fields[name].description or "") > 20


def test_defaults_listen_on_this_machine_only_and_refuse_untrained_weights(monkeypatch):
    for name in ("TAGS_HOST", "TAGS_PORT", "TAGS_ENGINE", "TAGS_ALLOW_UNTRAINED"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings()
    assert (settings.host, settings.port, settings.engine) == ("127.0.0.1", 8080, "embedded")
    assert settings.allow_untrained is False
    assert (settings.bundle_dir / "bundle.json").name == "bundle.json"


def test_the_environment_sets_them(monkeypatch):
    monkeypatch.setenv("TAGS_PORT", "9000")
    monkeypatch.setenv("TAGS_ENGINE", "triton")
    assert (Settings().port, Settings().engine) == (9000, "triton")


def test_a_two_gigabyte_body_is_over_the_default_limit():
    assert Settings().max_upload_bytes < 2_000_000_000


@pytest.mark.parametrize(("name", "value"), [("PORT", "-1"), ("ENGINE", "torch"), ("MAX_RUNNING", "0")])
def test_a_value_out_of_range_is_refused_at_start(monkeypatch, name, value):
    monkeypatch.setenv(f"TAGS_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    """So that a site can take back what an overlay sets; an empty path would be the working directory."""
    for name in ("HOST", "OIDC_CA_FILE", "API_KEYS_FILE", "DIMSE_PORT", "KEEP_SOURCES_S", "MORE_BUNDLES"):
        monkeypatch.setenv(f"TAGS_{name}", "")
    assert Settings() == Settings(host="127.0.0.1", oidc_ca_file=None, api_keys_file=None, dimse_port=None)
