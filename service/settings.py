"""Every setting of the gateway, read once from `TAGS_*` environment variables and passed on as an argument.

What enters: the environment (`TAGS_PORT=9000`). What leaves: one frozen `Settings`; no instance at module level.
The text under a field is its documentation: what it means, its unit, and why the default is what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024**2
GIB = 1024**3


class Settings(BaseSettings):
    """Settings of one gateway process. Raises: pydantic.ValidationError at start for a value out of range."""

    model_config = SettingsConfigDict(env_prefix="TAGS_", frozen=True, use_attribute_docstrings=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on. Only this machine by default, since the service has no authentication of its own yet."""

    port: int = Field(default=8080, ge=0, le=65535)
    """TCP port to listen on."""

    engine: Literal["embedded", "triton"] = "embedded"
    """Where the networks run: ONNX Runtime inside this process, or a Triton server."""

    triton_url: str = "127.0.0.1:8001"
    """Host and gRPC port of the Triton server; read only with TAGS_ENGINE=triton."""

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

    data_dir: Path = Path("data")
    """Directory for what the service keeps between runs: ledger.db, objects/ and staging/, unless the next two settings
    name other places. It holds patient data."""

    database_url: str = Field(default="", repr=False)
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

    dimse_max_associations: int = Field(default=32, ge=1)
    """DICOM associations at once. The next is rejected as a passing condition."""

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

    max_voxels: int = Field(default=1024 * 512 * 512, ge=1)
    """Voxels of one volume. The mask and a working copy stay in memory: 1024 slices of 512 x 512 are 0.25 GiB each."""

    upload_idle_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that an upload may stand still before it is given up, so that a stalled sender frees its place."""

    request_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds from the end of the upload to the answer, waiting included."""

    readiness_timeout_s: float = Field(default=5.0, gt=0)
    """Seconds that the engine's canary inference may take before /health/ready says no."""

    readiness_cache_s: float = Field(default=2.0, ge=0)
    """Seconds for which a canary's outcome is reused, so that probes do not load the engine."""
