"""Every setting of the gateway, read once from `TAGS_*` environment variables and passed on as an argument.

What enters: the environment (`TAGS_PORT=9000`). What leaves: one frozen `Settings`; no instance at module level.
The text under a field is its documentation: what it means, its unit, and why the default is what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# Encrypted, but on this machine: what comes by such an address decides who is let in.
SAFE_ADDRESS = r"^$|^https://[^\s@?#]+$|^http://(127\.0\.0\.1|localhost|\[::1\])([:/][^\s@?#]*)?$"
MIB = 1024**2
GIB = 1024**3


class Settings(BaseSettings):
    """Settings of one gateway process. Raises: pydantic.ValidationError at start for a value out of range."""

    model_config = SettingsConfigDict(
        env_prefix="TAGS_", frozen=True, use_attribute_docstrings=True, extra="forbid", env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    """Address to listen on: only this machine by default. Any other needs authentication: TAGS_OIDC_ISSUER,
    TAGS_API_KEYS_FILE, or TAGS_AUTHENTICATED_BY_PROXY."""

    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port to listen on."""

    oidc_issuer: str = Field(default="", pattern=SAFE_ADDRESS)
    """Issuer of bearer tokens, exactly as their `iss` says it; its keys are found by OIDC discovery. Plain http only on
    this machine."""

    oidc_audience: str = ""
    """What a token's `aud` must name; needed with TAGS_OIDC_ISSUER."""

    oidc_roles_claim: str = "roles"
    """Claim of a token with the roles segment, push, read, admin; dots lead into it, such as `realm_access.roles`."""

    oidc_jwks_url: str = Field(default="", pattern=SAFE_ADDRESS)
    """Where the issuer's keys are, if discovery is not to say it or they are on another host."""

    oidc_ca_file: Path | None = None
    """Certificates to trust when calling the issuer, instead of the system's."""

    api_keys_file: Path | None = None
    """File with hashed API keys; `tags key new` makes a key and its line. Read again whenever it changes."""

    authenticated_by_proxy: bool = False
    """A proxy before this service authenticates everyone and nothing else can reach it: then nothing is checked here
    and everyone has every role. The header X-Forwarded-User names the caller for the audit trail."""

    trusted_proxies: str = "127.0.0.1"
    """Addresses, with commas between, whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    tls_certificate_file: Path | None = None
    """Certificate of this service with its chain, in PEM. With it HTTP is HTTPS: TLS 1.2 and 1.3 by BCP 195."""

    tls_key_file: Path | None = None
    """Key of the certificate, in PEM, unless it is in the same file."""

    tls_key_password: SecretStr = SecretStr("")
    """Password of the key, if it is encrypted."""

    tls_client_ca_file: Path | None = None
    """Authorities whose certificate each HTTP client must show (mTLS), in PEM, besides its token or key."""

    audit_file: Path | None = None
    """File for the audit trail: DICOM audit messages (PS3.15 A.5), one a line, mode 0600. It names patients by their
    Patient ID."""

    audit_syslog: str = Field(default="", pattern=r"^$|^[^\s:]+:\d{1,5}$|^\[[0-9A-Fa-f:]+\]:\d{1,5}$")
    """Host and port of an audit record repository that takes syslog over TLS (RFC 5425, usually port 6514). It is shown
    TAGS_TLS_CERTIFICATE_FILE, if there is one."""

    audit_syslog_ca_file: Path | None = None
    """Certificates to trust for it, instead of the system's."""

    audit_required: bool = False
    """Do nothing without its audit message: a request fails with 503, a C-STORE with A700, a delivery is tried again,
    nothing is deleted."""

    audit_source_id: str = Field(default="TAGS", min_length=1, max_length=64)
    """Name of this service in the audit trail (AuditSourceID)."""

    audit_site_id: str = Field(default="", max_length=64)
    """Name of the site in the audit trail (AuditEnterpriseSiteID)."""

    client_requests_per_minute: int = Field(default=6000, ge=1)
    """Requests of one client in a minute, on each replica. Viewers fetch hundreds of frames; a PACS may send each image
    alone. A client is a caller, else an address. Not counted on loopback without authentication, nor for /health."""

    client_requests_at_once: int = Field(default=64, ge=1)
    """Requests of one client at once, on each replica, events included; so that one cannot take every place."""

    engine: Literal["embedded", "triton"] = "embedded"
    """Where the networks run: ONNX Runtime inside this process, or a Triton server."""

    triton_url: str = "127.0.0.1:8001"
    """Host and gRPC port of the Triton server; read only with TAGS_ENGINE=triton. `dns:///host:port` takes all
    addresses of the name in turn."""

    triton_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one network call to Triton may take before it is answered as 504."""

    bundle_dir: Path = Path(__file__).resolve().parent.parent / "model_repository"
    """Directory of the bundle (bundle.json and the three networks): the shipped `small` by default."""

    more_bundles: tuple[str, ...] = ()
    """Further bundles to load, as a JSON list of directories: `["bundles/small-0.2.0"]`. A request names one with
    `bundle`. With TAGS_ENGINE=triton each is DIRECTORY=HOST:PORT of a Triton that serves it. Each takes the memory of
    its networks."""

    allow_untrained: bool = False
    """Serve a bundle whose weights were never trained. Off, since its masks mean nothing; for tests of the plumbing."""

    profiles_dir: Path | None = None
    """Directory of the site's own destination profiles (NAME.yaml); one with the name of a shipped profile wins."""

    deidentification_key: SecretStr = SecretStr("")
    """Secret from which the UIDs and patient pseudonyms of de-identified processing follow, of 32 characters or more;
    without it `POST /segment?deidentified=true` and the jobs of a rule with `deidentified` are refused. The same on
    every replica; another key gives others."""

    deidentify_requests: bool = False
    """Work on every `POST /segment` as if it said `deidentified=true`. Series that a PACS sends are not concerned:
    their rules say it for themselves."""

    data_dir: Path = Path("data")
    """Directory for what the service keeps between runs: ledger.db, objects/ and staging/, unless the next two settings
    name other places. It holds patient data."""

    database_url: SecretStr = SecretStr("")
    """SQLAlchemy URL of the ledger, such as `postgresql+psycopg://user:password@host/tags`, which several replicas may
    share; SQLite in TAGS_DATA_DIR by default."""

    object_store_url: str = ""
    """Where received and made objects are kept, as fsspec names places, such as `s3://bucket/tags` (extra `s3`; address
    and keys by AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and the other variables of S3 clients); a folder in TAGS_DATA_DIR
    by default."""

    routing_file: Path | None = None
    """YAML file with sources, destinations and rules; read again whenever it changes. Without one, nothing that is
    received is segmented by itself."""

    worker: bool = True
    """Whether this process also works on jobs. Off where `tags worker` runs apart."""

    job_lease_s: float = Field(default=60.0, gt=0)
    """Seconds after which another worker takes over the job of one that gives no sign of life."""

    job_attempts: int = Field(default=10, ge=1)
    """Attempts at a segmentation, those of workers that died included, before a person must look at it."""

    delivery_attempts: int = Field(default=100, ge=1)
    """Attempts at a delivery before a person must look at it: with pauses of 15 minutes, about a day."""

    delivery_workers: int = Field(default=2, ge=1)
    """Deliveries at once in one worker."""

    result_keep_s: float = Field(default=86400.0, gt=0)
    """Seconds for which the answer of a request that did not wait is kept."""

    keep_sources_s: float | None = Field(default=None, gt=0)
    """Seconds for which a received series is kept once everything made of it is delivered; until a person removes it by
    default. The time counts from the last image or the end of the last job."""

    keep_results_s: float | None = Field(default=None, gt=0)
    """Seconds for which a result of ours is kept here once every delivery of it is done."""

    keep_failed_s: float | None = Field(default=None, gt=0)
    """Seconds for which a received series is kept that no rule wanted, or whose segmentation was refused or cancelled.
    A job that was given up keeps its series until a person decides."""

    max_store_bytes: int = Field(default=64 * GIB, ge=1)
    """Bytes of one STOW-RS request. A PACS sends a study of any size in one; they go to disk as they arrive."""

    min_free_bytes: int = Field(default=1 * GIB, ge=0)
    """Bytes that must stay free where objects are kept. Below, nothing more is received: 507, or A700 by DIMSE."""

    max_receiving: int = Field(default=32, ge=1)
    """STOW-RS requests received at once. The next is answered 503."""

    dimse_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port of the DICOM listener (C-STORE, C-ECHO); none by default."""

    dimse_ae_title: str = Field(default="TAGS", pattern=r"^[ -\[\]-~]{1,16}$")
    """AE title of this service. Associations that call another are rejected."""

    dimse_calling_ae_titles: str = ""
    """AE titles that may send, with commas between; anyone by default, since the address is this machine's own."""

    dimse_tls: bool = False
    """Speak TLS on the DICOM port, with the certificate of TAGS_TLS_CERTIFICATE_FILE (PS3.15 Annex B, BCP 195)."""

    dimse_tls_client_ca_file: Path | None = None
    """Authorities whose certificate each DICOM sender must show (mTLS), in PEM. Without it, a DICOM port on another
    address than this machine's needs TAGS_DIMSE_TRUSTED_NETWORK."""

    dimse_trusted_network: bool = False
    """Only known nodes can reach the DICOM port: a firewall or a network of its own sees to that. An AE title is a name
    that anyone can give."""

    dimse_max_associations: int = Field(default=32, ge=1)
    """DICOM associations at once. The next is rejected as a passing condition."""

    public_url: str = Field(default="", pattern=r"^$|^https?://[^\s@?#]+$")
    """Address by which senders reach this service, through proxy or ingress, such as `https://tags.hospital.example`;
    the watchdog goes there, and `tags doctor` checks its certificate, clock and body limits."""

    public_ca_file: Path | None = None
    """Certificates to trust at TAGS_PUBLIC_URL, instead of the system's."""

    probe_key: SecretStr = SecretStr("")
    """API key or token by which watchdog and `tags doctor` call this service, where it asks for one; needs the roles
    segment and read."""

    watchdog_interval_s: float = Field(default=0.0, ge=0)
    """Seconds between journeys of the phantom watchdog; 0 for none, the default, since each takes the engine for a
    second or more. 300 suits a service that others rely on."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port at which `tags worker` shows its metrics; none by default. The gateway has /metrics."""

    otlp_endpoint: str = ""
    """Where traces go: an OpenTelemetry collector's address for OTLP over HTTP, such as
    `http://collector:4318/v1/traces`; no traces by default. They hold no patient data, UID or path."""

    temporary_dir: Path | None = None
    """Directory for uploads in progress; the system's own by default. Each request gets a private directory in it
    (mode 0700, random names), removed with the answer. It holds patient data while a request runs."""

    threads: int = Field(default=2, ge=1)
    """Threads that ONNX Runtime may use for one network call. Twice the cores is slower, not faster."""

    max_running: int = Field(default=2, ge=1)
    """Segmentations computed at once. Each holds a series and its mask in memory."""

    max_waiting: int = Field(default=16, ge=0)
    """Requests beyond those that are running: being received, or waiting for their turn. The next is answered 503."""

    max_upload_bytes: int = Field(default=1536 * MIB, ge=1)
    """Bytes of a request body. 1.5 GiB holds 3000 uncompressed CT slices of 512 x 512; a larger Content-Length is
    refused before the body is read."""

    max_field_bytes: int = Field(default=256 * 1024, ge=1)
    """Bytes of one text field, such as `prompts`. Thirty-two points need 2 KiB."""

    max_file_count: int = Field(default=10_000, ge=1)
    """Files of one request, archives unpacked. A large CT study has 3000."""

    max_inflated_bytes: int = Field(default=4 * GIB, ge=1)
    """Bytes that the archives of one request may inflate to on disk."""

    max_inflation_ratio: float = Field(default=100.0, ge=1)
    """Inflated bytes per archive byte, beyond a first 64 MiB. CT deflates two- to fivefold, a bomb a thousandfold."""

    max_instances: int = Field(default=4000, ge=1)
    """Images of one series."""

    max_voxels: int = Field(default=2048 * 512 * 512, ge=1)
    """Voxels of one volume: 2048 slices of 512 x 512. A box in 2000 took 0.5 GiB for a SEG, 2 GiB for `bundle`."""

    upload_idle_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that an upload may stand still before it is given up, so that a stalled sender frees its place."""

    request_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds from the end of the upload to the answer, waiting included."""

    drain_s: float = Field(default=300.0, gt=0)
    """Seconds that requests under way may take to end once the process is told to stop; what is open then, such as a
    stream of events, is cut off."""

    readiness_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that the engine's canary inference may take before /health/ready says no."""

    readiness_cache_s: float = Field(default=2.0, ge=0)
    """Seconds for which a canary's outcome is reused, so that probes do not load the engine."""
