"""The whole installation without containers: PostgreSQL, Orthanc, the CPU Triton, two gateways with OIDC behind
nginx with TLS.

What enters: a directory. What leaves: a running `Stack`, every process of it ended with the context. Each part is the
real program; a test that cannot have one skips with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from contract.bundle import load_bundle
from demo.running import ROOT, free_port
from service.access.caller import Role
from service.access.keys import key_line, new_key
from service.triton_install import TritonUnavailable, install
from service.triton_server import Ports, TritonServer
from tests.conftest import require
from tests.pacs.orthanc import Orthanc, require_orthanc, running_orthanc
from tests.security.issuer import AUDIENCE, TokenIssuer, token_issuer

POSTGRES = Path("/usr/lib/postgresql")
TOKEN_S = 30 * 86400  # the probe's token should not be over soon
READY_S, STOP_S, DOCTOR_S = 300, 60, 900  # a busy machine takes its time
BODY_LIMIT = "64g"  # TAGS_MAX_STORE_BYTES
NGINX = """
user root; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size {limit};
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream gateways {{ {servers} }}
  server {{
    listen 127.0.0.1:{port} ssl; server_name localhost;
    ssl_certificate {directory}/certificate.pem; ssl_certificate_key {directory}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
      proxy_pass http://gateways; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Proto https; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


@dataclass
class Gateway:
    """One gateway process and the settings that it was started with."""

    settings: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.settings["TAGS_PORT"])

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "service.cli", "serve"]
            self.process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, env=os.environ | self.settings, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            with suppress(httpx.HTTPError):
                url = f"http://127.0.0.1:{self.port}/health/ready"
                if httpx.get(url, timeout=10, trust_env=False).is_success:
                    return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text(errors="replace")[-2000:])

    def stop(self) -> None:
        """As a roll-out does: SIGTERM, time to finish, then SIGKILL."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass
class Stack:
    """What is running, and how to take parts of it away."""

    directory: Path
    url: str
    database_url: str
    gateways: list[Gateway]
    orthanc: Orthanc
    triton: TritonServer
    issuer: TokenIssuer
    parts: dict[str, ExitStack] = field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    def client(self, *roles: str) -> httpx.Client:
        """Of the service through nginx, as a sender has it, with a token of these roles."""
        token = self.issuer.token(*roles, exp=int(time.time()) + TOKEN_S)
        trust = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            base_url=self.url,
            verify=trust,
            timeout=120,
            trust_env=False,
            headers={"Authorization": f"Bearer {token}"},
        )

    def take_away(self, part: str) -> None:
        """Stop "database", "issuer", "orthanc" or "triton" for good."""
        self.parts.pop(part).close()

    def limit_bodies(self, limit: str) -> None:
        """Let nginx refuse larger ones from now on."""
        write_nginx(self.directory, self.gateways, int(self.url.rpartition(":")[2]), limit)
        os.kill(int((self.directory / "nginx.pid").read_text()), signal.SIGHUP)
        time.sleep(2)

    def doctor(self, *arguments: str, **settings: str) -> tuple[int, dict[str, Any]]:
        """`tags doctor --json` with the settings of the first gateway, but for `settings`. Returns: exit status and
        findings."""
        command = [sys.executable, "-m", "service.cli", "doctor", "--json", *arguments]
        environment = os.environ | self.gateways[0].settings | settings
        done = subprocess.run(  # noqa: S603
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DOCTOR_S, check=False
        )
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)


def access_settings(issuer: TokenIssuer, keys_file: Path, pacs_key: str) -> dict[str, str]:
    """Who may use the service: whoever has a token of the test's own issuer, and the PACS, which cannot renew one."""
    keys_file.write_text(key_line("pacs", frozenset({Role.PUSH}), pacs_key) + "\n")
    probe_token = issuer.token("segment", "read", exp=int(time.time()) + TOKEN_S)
    return {
        "TAGS_OIDC_ISSUER": issuer.url, "TAGS_OIDC_AUDIENCE": AUDIENCE, "TAGS_API_KEYS_FILE": str(keys_file),
        "TAGS_PROBE_KEY": probe_token,
    }  # fmt: skip


@contextmanager
def running_stack(directory: Path) -> Iterator[Stack]:
    require_orthanc()
    require(shutil.which("nginx") is not None, "nginx is not installed")
    require(POSTGRES.is_dir(), "postgresql is not installed")
    require(os.geteuid() == 0, "PostgreSQL is started as its own user, which takes root")
    try:
        installation = install(ROOT / ".cache" / "triton")
    except TritonUnavailable as error:
        require(False, str(error))
    directory.mkdir(parents=True, exist_ok=True)
    write_certificate(directory)
    bundle, port, dimse_port = load_bundle(ROOT / "model_repository"), free_port(), free_port()
    url, routing, pacs_key = f"https://localhost:{port}", directory / "routing.yaml", new_key()
    triton = TritonServer(bundle, installation, ports=Ports.free(), log=directory / "triton.log")
    parts = {name: ExitStack() for name in ("issuer", "database", "triton", "orthanc", "nginx")}
    with ExitStack() as everything:
        for part in parts.values():
            everything.push(part)
        issuer = parts["issuer"].enter_context(token_issuer())
        database_url = parts["database"].enter_context(postgres())
        parts["triton"].enter_context(triton)
        orthanc = parts["orthanc"].enter_context(
            running_orthanc(
                directory / "orthanc",
                tags_url=url,
                tags_dimse_port=dimse_port,
                tags_key=pacs_key,
                ca_file=str(directory / "certificate.pem"),
            )
        )
        write_routing(routing, orthanc)
        settings = {
            "TAGS_HOST": "127.0.0.1", "TAGS_DATA_DIR": str(directory / "data"), "TAGS_DATABASE_URL": database_url,
            "TAGS_ENGINE": "triton", "TAGS_TRITON_URL": triton.url, "TAGS_ROUTING_FILE": str(routing),
            "TAGS_PUBLIC_URL": url, "TAGS_PUBLIC_CA_FILE": str(directory / "certificate.pem"),
            "TAGS_READINESS_TIMEOUT_S": "60", "TAGS_JOB_LEASE_S": "120", "TAGS_MIN_FREE_BYTES": "0",
            "PACS_PASSWORD": "pacs-secret", "OMP_NUM_THREADS": "1",
        } | access_settings(issuer, directory / "keys", pacs_key)  # fmt: skip
        gateways = [
            Gateway(settings | {"TAGS_PORT": str(free_port())}, directory / f"gateway{number}.log")
            for number in range(2)
        ]
        gateways[0].settings["TAGS_DIMSE_PORT"] = str(dimse_port)  # to which Orthanc reports storage commitment
        for gateway in gateways:
            gateway.start()
            everything.callback(gateway.stop)
        for gateway in gateways:
            gateway.wait_until_ready()
        write_nginx(directory, gateways, port, BODY_LIMIT)
        parts["nginx"].enter_context(nginx(directory, port))
        yield Stack(directory, url, database_url, gateways, orthanc, triton, issuer, parts)


def write_routing(file: Path, orthanc: Orthanc) -> None:
    """CT of the abdomen with an annotation is segmented; the result goes back to where it came from."""
    web = {"url": orthanc.dicomweb, "username": "pacs", "password_env": "PACS_PASSWORD"}
    node = {"host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "PACS"}
    rule = {
        "name": "annotated",
        "match": {"Modality": "CT", "instances": {"at_least": 20}},
        "prompts": {"annotation": ["SEG"]},
        "destinations": ["pacs"],
    }
    document = {
        "completeness": {"quiet_s": 2.0},
        "sources": {"pacs": web},
        "destinations": {"pacs": {"stow": web}, "node": {"dimse": node}},
        "rules": [rule],
    }
    file.write_text(yaml.safe_dump(document))


@contextmanager
def postgres() -> Iterator[str]:
    """A database of its own, run by the user postgres. Yields: its URL."""
    programs = max(POSTGRES.glob("*/bin"))
    directory, port = Path(tempfile.mkdtemp(prefix="tags-postgres-")), free_port()
    shutil.chown(directory, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")  # noqa: S603

    data, log = str(directory / "data"), str(directory / "log")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
    try:
        run("initdb", "-D", data, "-A", "trust")
        run("pg_ctl", "-D", data, "-l", log, "-w", "-t", "120", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres?connect_timeout=10"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "-t", "120", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def nginx(directory: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen(  # noqa: S603
        [shutil.which("nginx") or "nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + STOP_S
        trust = ssl.create_default_context(cafile=str(directory / "certificate.pem"))
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(httpx.HTTPError):
                httpx.get(f"https://localhost:{port}/health/live", verify=trust, timeout=20, trust_env=False)
                break
            time.sleep(0.2)
        else:
            raise AssertionError((directory / "error.log").read_text()[-2000:])
        yield
    finally:
        process.terminate()
        process.wait()


def write_nginx(directory: Path, gateways: list[Gateway], port: int, limit: str) -> None:
    servers = " ".join(f"server 127.0.0.1:{gateway.port} max_fails=1 fail_timeout=2s;" for gateway in gateways)
    text = NGINX.format(directory=directory, limit=limit, servers=servers, port=port)
    (directory / "nginx.conf").write_text(text)


def write_certificate(directory: Path) -> None:
    """A certificate of its own authority for localhost, for 90 days."""
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "90",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(directory / "key.pem"), "-out", str(directory / "certificate.pem"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
