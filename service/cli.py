"""`tags`: the command line. `segment` runs in this process, by the code of the API; `serve`, `worker`, `capabilities`,
`triton`; `rules` and `ledger` have modules of their own.

What enters: arguments and `TAGS_*` settings. What leaves: a file, a table, an exit status: 0, or 1 for a refusal or a
fault, with a short text on standard error. Nothing of a dataset is printed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contract.bundle import BundleInvalid, load_bundle
from service import doctor_cli, key_cli, ledger_cli, rules_cli
from service.access.keys import KeysInvalid
from service.access.listening import ListeningRefused
from service.app import create_app, ledger_of, new_worker, open_bundle, open_engines, routing_of
from service.audit.trail import AuditTrail
from service.capabilities import capabilities
from service.conformance import statement
from service.dicom.acquisition import read_acquisition
from service.errors import MalformedRequest, TagsError
from service.local import LocalRequest, segment_local, write_whole
from service.preview import RESEARCH_USE
from service.prompt_document import PromptDocument, read_prompt_document
from service.results import DEFAULT_FORMAT, FORMATS, Finding, format_named, summary
from service.rules.document import RoutingInvalid, read_routing
from service.settings import Settings
from service.telemetry.ledger_metrics import LedgerMetrics
from service.telemetry.metrics import Metrics
from service.telemetry.quiet import silence_foreign_libraries
from service.telemetry.request_log import describe_fault
from service.telemetry.stages import Stages
from service.telemetry.tracing import open_tracing
from service.tls import TlsInvalid, own_context
from service.triton_install import TritonUnavailable
from service.triton_server import Ports, run_triton

app = typer.Typer(
    help=f"Find the extent of a tumour in a CT or MR series, from a prompt. {RESEARCH_USE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they print local variables, and those hold datasets
)
app.add_typer(rules_cli.app, name="rules")
app.add_typer(ledger_cli.app, name="ledger")
app.add_typer(key_cli.app, name="key")
app.command()(doctor_cli.doctor)
out, err = Console(), Console(stderr=True)

STAGES = {  # what a stage is called while one waits for it
    "open": "loading the networks",
    "unpack": "collecting the files",
    "headers": "reading the headers",
    "pixels": "decoding the images",
    "prepare": "resampling the region",
    "encode": "image encoder",
    "text": "text encoder",
    "decode": "mask decoder",
    "restore": "laying the mask onto the series",
    "write": "writing the result",
}


@app.command("segment")
def segment_command(
    source: Annotated[Path, typer.Argument(metavar="DIR_OR_ZIP", exists=True, help="Folder, ZIP, TAR(.gz) or file.")],
    out_file: Annotated[Path, typer.Option("--out", dir_okay=False, help="File to write.")],
    point: Annotated[list[str] | None, typer.Option(metavar="X,Y,Z", help="Click on the tumour, LPS mm.")] = None,
    background: Annotated[list[str] | None, typer.Option(metavar="X,Y,Z", help="Click beside it, LPS mm.")] = None,
    index: Annotated[
        list[str] | None, typer.Option(metavar="C,R,S", help="Click by column, row, slice, from 0.")
    ] = None,
    box: Annotated[list[str] | None, typer.Option(metavar="X0,Y0,Z0,X1,Y1,Z1", help="Box around it, LPS mm.")] = None,
    text: Annotated[str | None, typer.Option(help='What to find, such as "liver tumour".')] = None,
    target: Annotated[str | None, typer.Option(help='Anatomy, such as "liver".')] = None,
    organ_mask: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="NIfTI or DICOM SEG.")] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Previous mask, NIfTI or DICOM SEG.")
    ] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Series, when there are several.")] = None,
    acquisition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Which images of a series with several times or echoes."),
    ] = None,
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = DEFAULT_FORMAT,
    profile: Annotated[str | None, typer.Option(help="Destination profile; `tags capabilities` lists them.")] = None,
) -> None:
    """Segment the tumour at a prompt, in this process. Point, background, index and box may be repeated."""
    with reported_errors():
        format_named(format)
        request = LocalRequest(
            source=source,
            document=prompt_document(text, target, point, background, index, box),
            organ_mask=organ_mask,
            mask=mask,
            series_instance_uid=series,
            acquisition=acquisition_of(acquisition or []),
            format=format,
            profile=profile,
        )
        silence_foreign_libraries(lambda: None)
        with err.status("starting") as status:
            stages = Stages(on_enter=lambda name: status.update(f"{STAGES.get(name, name)} ..."))
            result, finding = asyncio.run(segment_local(request, read_settings(), stages))
        write_whole(out_file, result.body)
    out.print(finding_table(summary(finding), finding))
    out.print(f"{FORMATS[format].description} written. [bold]{RESEARCH_USE}[/bold]")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of TAGS_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, instead of TAGS_PORT.")] = None,
) -> None:
    """Run the service until it is stopped."""
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    with reported_errors():
        settings = read_settings(**chosen)
        served = create_app(settings)
        bundle = open_bundle(settings)
        scheme = "https" if settings.tls_certificate_file else "http"
        err.print(f"TAGS with {bundle.identity}, {scheme}://{settings.host}:{settings.port}/docs. {RESEARCH_USE}")
        uvicorn.run(
            served,
            host=settings.host,
            port=settings.port,
            forwarded_allow_ips=settings.trusted_proxies,
            ssl_context_factory=tls_of(settings),
            server_header=False,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=math.ceil(settings.drain_s),
        )


def tls_of(settings: Settings) -> Callable[..., ssl.SSLContext] | None:
    """What uvicorn calls for its context; None for plain HTTP. Raises: TlsInvalid, already here."""
    if settings.tls_certificate_file is None:
        return None
    context = own_context(settings, client_ca_file=settings.tls_client_ca_file)
    return lambda *_: context


@app.command()
def worker() -> None:
    """Work on jobs until it is stopped: for replicas beside gateways that run with TAGS_WORKER=false."""
    with reported_errors():
        settings = read_settings()
        silence_foreign_libraries(lambda: None)
        err.print(f"TAGS worker with {open_bundle(settings).identity}. {RESEARCH_USE}")
        asyncio.run(run_worker(settings))


async def run_worker(settings: Settings) -> None:
    """Until SIGTERM or SIGINT, which give the jobs at hand back."""
    tracing, metrics = open_tracing(settings.otlp_endpoint), Metrics()
    engines, ledger = open_engines(settings, tracing.tracer), ledger_of(settings)
    routing = routing_of(settings)
    metrics.register(LedgerMetrics(ledger, reserve_bytes=settings.min_free_bytes))
    close_metrics = metrics.serve(settings.host, settings.metrics_port) if settings.metrics_port else None
    audit = AuditTrail(settings, metrics.audit_failures.inc)
    worker = new_worker(settings, ledger, routing, engines, metrics, audit, tracer=tracing.tracer)
    working = asyncio.create_task(worker.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    try:
        await asyncio.gather(working, return_exceptions=True)
    finally:
        if close_metrics:
            await asyncio.to_thread(close_metrics)
        ledger.close()
        audit.close()
        for engine in engines:
            await engine.close()
        await asyncio.to_thread(tracing.close)


@app.command("capabilities")
def capabilities_command(
    as_json: Annotated[bool, typer.Option("--json", help="The document of GET /capabilities.")] = False,
) -> None:
    """Show formats, prompts, bundle and limits."""
    with reported_errors():
        settings = read_settings()
        document = capabilities(load_bundle(settings.bundle_dir), settings)
    if as_json:
        out.print_json(json.dumps(document))
    else:
        out.print(capabilities_table(document))


@app.command()
def conformance() -> None:
    """Print the DICOM conformance statement of this configuration, as Markdown."""
    with reported_errors():
        settings = read_settings()
        text = statement(settings, read_routing(settings.routing_file, settings.profiles_dir), create_app(settings))
    typer.echo(text, nl=False)


@app.command()
def triton(
    directory: Annotated[Path | None, typer.Option(help="For the installation and the log.")] = None,
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = Ports.http,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="For TAGS_TRITON_URL.")] = Ports.grpc,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = Ports.metrics,
) -> None:
    """Run a real Triton server on this machine's CPU with the bundle of TAGS_BUNDLE_DIR; installs it the first time."""
    with reported_errors():
        bundle = load_bundle(read_settings().bundle_dir)
        status = run_triton(bundle, directory or triton_directory(), Ports(http_port, grpc_port, metrics_port))
    raise typer.Exit(status)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns every error into a short safe text and exit status 1. The outermost handler of the command line."""
    try:
        yield
    except TagsError as error:
        lines = [f"{error.title}: {error.detail}", *members(error)]
    except (BundleInvalid, TritonUnavailable, RoutingInvalid, ListeningRefused, KeysInvalid, TlsInvalid) as error:
        lines = [str(error)]
    except ValidationError as error:
        lines = [f"TAGS_{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
    except OSError as error:
        lines = [f"a file cannot be read or written: {error.strerror}"]
    except Exception as error:
        lines = [f"internal error: {describe_fault(error)}"]  # never its message: it may quote a data element
    else:
        return
    for line in lines:
        err.print(f"[red]{escape(line)}[/red]", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def members(error: TagsError) -> list[str]:
    """The further members of a problem, such as the series to choose from, one line each."""
    return [
        f"  {json.dumps(item, ensure_ascii=False)}" if isinstance(item, dict) else f"  {item}"
        for listed in error.members.values()
        for item in (listed if isinstance(listed, list | tuple) else [listed])
    ]


def read_settings(**chosen: Any) -> Settings:
    """Settings of the environment, with what the command line chose instead. Raises: pydantic.ValidationError."""
    return Settings(**chosen)


def triton_directory() -> Path:
    """Where the user's caches are: the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tags" / "triton"


def prompt_document(
    text: str | None,
    target: str | None,
    points: list[str] | None,
    background: list[str] | None,
    indices: list[str] | None,
    boxes: list[str] | None,
) -> PromptDocument:
    """The document that the API would be sent, through the same checks. Raises: MalformedRequest."""
    listed: list[dict[str, object]] = [{"lps_mm": numbers(point, 3)} for point in points or ()]
    listed += [{"lps_mm": numbers(point, 3), "label": 0} for point in background or ()]
    listed += [{"index": numbers(point, 3)} for point in indices or ()]
    corners = [numbers(box, 6) for box in boxes or ()]
    document = {
        "text": text,
        "target": target,
        "points": listed,
        "boxes": [{"lps_mm": [corner[:3], corner[3:]]} for corner in corners],
    }
    return read_prompt_document(json.dumps(document))


def acquisition_of(pairs: list[str]) -> dict[str, float]:
    """Of `EchoNumbers=1`. Raises: MalformedRequest."""
    named = dict(pair.partition("=")[::2] for pair in pairs)
    return read_acquisition(json.dumps({name: numbers(value, 1)[0] for name, value in named.items()}))


def numbers(value: str, count: int) -> list[float]:
    """Raises: MalformedRequest: not `count` numbers with commas between them."""
    try:
        parsed = [float(part) for part in value.split(",")]
    except ValueError:
        parsed = []
    if len(parsed) != count:
        raise MalformedRequest(f"a point takes 3 numbers, a box 6, such as {','.join('0' * count)}")
    return parsed


def finding_table(found: dict[str, Any], finding: Finding) -> Table:
    """Measurements, warnings and stage times of one result, for the eye."""
    table = Table(title=None if found["found"] else "nothing found", show_header=False)
    if found["found"]:
        table.add_row("volume", f"{found['volume_ml']:.2f} ml ({found['voxels']} voxels)")
        table.add_row("largest diameter", f"{found['max_diameter_mm']:.1f} mm")
        table.add_row("in the slice", f"{found['long_axis_mm']:.1f} x {found['short_axis_mm']:.1f} mm")
        table.add_row("score", f"{found['score']:.2f}")
    table.add_row("bundle", finding.bundle.identity)
    table.add_row("time", ", ".join(f"{name} {ms:.0f} ms" for name, ms in found["stages_ms"].items()))
    for item in found["set_aside"]:
        table.add_row("set aside", f"{item['count']} ({item['reason']})")
    for warning in found["warnings"]:
        table.add_row("note", f"[yellow]{escape(warning)}[/yellow]")
    return table


def capabilities_table(document: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for bundle in document["bundles"]:
        table.add_row("bundle", f"{bundle['name']} {bundle['version']}" + ("" if bundle["trained"] else ", untrained"))
        table.add_row("targets", ", ".join(bundle["targets"]))
        table.add_row("findings", ", ".join(bundle["findings"]))
    table.add_row("engine", document["engine"])
    table.add_row("modalities", ", ".join(document["modalities"]))
    table.add_row("formats", ", ".join(document["formats"]))
    table.add_row("profiles", ", ".join(document["profiles"]))
    table.add_row("prompts", ", ".join(document["prompts"]))
    table.add_row("archives", ", ".join(document["archives"]))
    for name, value in document["limits"].items():
        table.add_row(name, str(value))
    table.add_row("use", document["research_use"])
    return table


if __name__ == "__main__":
    app()
