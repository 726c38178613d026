"""Segmentation jobs: a held series by a rule, or a request that did not wait. The same code path as `POST /segment`.

What enters: a lease. What leaves, in one transaction: results in the ledger, deliveries in the queue, the job's end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread
from opentelemetry.trace import Tracer

from contract.bundle import Bundle
from service.audit.event import Participant, accessed
from service.audit.trail import AuditTrail
from service.bundles import choose
from service.dicom.annotations import read_marks
from service.dicom.deidentification import Pseudonyms, deidentify
from service.dicom.facts import read_facts
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.lineage import read_lineage
from service.dicom.outcome import Lineage
from service.dicom.profiles import profile_named
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import MaskMismatch, ModelNotReady, NoPrompts, UnknownBundle
from service.inference.engine import Engine
from service.ledger.jobs import Lease, LeaseLost, NewJob, Priority
from service.ledger.ledger import Ledger
from service.ledger.outcome import conclude
from service.ledger.receiving import Arrival, Origin
from service.ledger.series import HeldInstance
from service.ledger.trails import Trail
from service.mask_file import read_mask
from service.prompt_document import PromptDocument, read_prompt_document, resolve
from service.results import FORMATS, Finding, dicom_objects, rendered
from service.segment import segment
from service.settings import Settings
from service.subject import study_of
from service.telemetry.stages import Stages
from service.telemetry.tracing import OFF, current_traceparent
from service.work.marks import prompts_of
from service.work.plans import DeliveryPlan, RequestPlan, SeriesPlan


@dataclass(frozen=True, eq=False)
class Segmenter:
    """Runs jobs of the kinds "series" and "request". `engines`: the default bundle's first."""

    ledger: Ledger
    engines: tuple[Engine, ...]
    settings: Settings
    audit: AuditTrail
    tracer: Tracer = OFF

    async def run_series(self, lease: Lease, enter: Callable[[str], None]) -> dict[str, float]:
        """Returns: seconds by stage. Raises: LeaseLost, and the leaves that `POST /segment` answers."""
        plan, stages = SeriesPlan.model_validate(lease.plan), Stages(on_enter=enter, tracer=self.tracer)
        table = self.ledger.series
        if await to_thread.run_sync(table.revision_of, lease.series_instance_uid) != lease.series_revision:
            await to_thread.run_sync(partial(self.ledger.jobs.end, lease, state="cancelled", reason="superseded"))
            return {}

        def read(directory: Path) -> _Task:
            source = self._read_held(lease.series_instance_uid, plan.acquisition, directory)
            self._audit(source, f"rule:{plan.rule}")
            task = self._task_of_series(plan, source, directory)
            return self._without_patient(task, plan.acquisition, directory) if plan.deidentified else task

        return await self._run(plan.bundle, stages, read, partial(self._conclude_series, lease, plan))

    async def run_request(self, lease: Lease, enter: Callable[[str], None]) -> dict[str, float]:
        """Returns: seconds by stage. Raises: as above."""
        plan, stages = RequestPlan.model_validate(lease.plan), Stages(on_enter=enter, tracer=self.tracer)
        read, conclude = partial(self._task_of_request, plan), partial(self._conclude_request, lease, plan)
        return await self._run(plan.bundle, stages, read, conclude)

    async def _run(
        self,
        bundle: str | None,
        stages: Stages,
        read: Callable[[Path], _Task],
        conclude: Callable[[_Found, Path], None],
    ) -> dict[str, float]:
        """What every job goes through, from files to its end. Returns: seconds by stage."""
        engine = self._engine(bundle)
        directory = await to_thread.run_sync(self.ledger.staging.directory)
        try:
            with stages("headers"):
                task = await to_thread.run_sync(read, directory)
            mask = await segment(task.source, task.prompts, engine, stages)
            found = _Found(task, mask, engine.bundle, stages, self.settings.profiles_dir)
            await to_thread.run_sync(conclude, found, directory)
        finally:
            await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
        return stages.seconds

    def _engine(self, bundle: str | None) -> Engine:
        """Raises: ModelNotReady: the job's bundle is not loaded here; another worker may have it."""
        try:
            return choose(self.engines, bundle)
        except UnknownBundle as error:
            raise ModelNotReady(f"the job asks for a bundle that is not loaded here; {error.detail}") from error

    def _audit(self, source: Series, asked_by: str) -> None:
        """Told before anything is made of the images. Raises: AuditUnavailable."""
        asking = Participant(asked_by or "unknown", requestor=True)
        self.audit.record(accessed(asking, self.audit.us, study_of(source)))

    def _task_of_request(self, plan: RequestPlan, directory: Path) -> _Task:
        paths = dict(zip(plan.keys, self.ledger.store.fetch(plan.keys, directory), strict=True))
        source = self._read([paths[key] for key in plan.files], plan.series_instance_uid, plan.acquisition)
        self._audit(source, plan.requested_by)
        organ_mask, mask = (paths[key] if key else None for key in (plan.organ_mask, plan.mask))
        return _task(source, read_prompt_document(plan.prompts), organ_mask, mask)

    def _read_held(self, series_instance_uid: str, acquisition: Mapping[str, float], directory: Path) -> Series:
        held = self.ledger.series.instances(series_instance_uid=series_instance_uid)
        return self._read(self._fetch(held, directory), series_instance_uid, acquisition)

    def _read(self, files: Sequence[Path], series_instance_uid: str | None, acquisition: Mapping[str, float]) -> Series:
        limits = SeriesLimits(max_instances=self.settings.max_instances, max_voxels=self.settings.max_voxels)
        return read_series(files, series_instance_uid=series_instance_uid, limits=limits, acquisition=acquisition)

    def _fetch(self, held: Sequence[HeldInstance], directory: Path) -> tuple[Path, ...]:
        return self.ledger.store.fetch([item.object_key for item in held], directory)

    def _task_of_series(self, plan: SeriesPlan, source: Series, directory: Path) -> _Task:
        """Raises: NoPrompts: neither a text nor anything marked. MaskMismatch: an annotation cannot be laid onto it."""
        wanted = [*plan.annotations, *([plan.organ_mask] if plan.organ_mask else [])]
        held = {item.sop_instance_uid: item for item in self.ledger.series.instances(sop_instance_uids=wanted)}
        (annexes := directory / "annotations").mkdir()
        paths = dict(zip(held, self._fetch(list(held.values()), annexes), strict=True))
        if missing := set(wanted) - paths.keys():
            raise MaskMismatch(f"{len(missing)} annotations that the job names are not held any more")
        masks = [paths[uid] for uid in plan.annotations if _is_seg(held[uid])]
        marks = [mark for uid in plan.annotations if not _is_seg(held[uid]) for mark in read_marks(paths[uid])]
        points, boxes = prompts_of(marks, source)
        if plan.annotations and not (masks or points or boxes or plan.text):
            raise NoPrompts("the annotation marks no place in this series")
        document = PromptDocument(text=plan.text, target=plan.target, points=points, boxes=boxes)
        organ_mask = paths[plan.organ_mask] if plan.organ_mask else None
        return _task(source, document, organ_mask, masks[-1] if masks else None)

    def _without_patient(self, task: _Task, acquisition: Mapping[str, float], directory: Path) -> _Task:
        """The same task on copies of its images without their patient, so that no result knows of one; what is held
        stays as it is. Raises: NotDeidentifiable: burned-in words, or no key."""
        pseudonyms = Pseudonyms.keyed(self.settings.deidentification_key.get_secret_value())
        (copies := directory / "without-patient").mkdir()
        files = []
        for number, path in enumerate(dict.fromkeys(header.path for header in task.source.headers)):
            files.append(Path(shutil.copyfile(path, copies / f"{number:06}")))
            deidentify(files[-1], pseudonyms)
        return replace(task, source=self._read(files, None, acquisition), lineage=None)

    def _conclude_series(self, lease: Lease, plan: SeriesPlan, found: _Found, directory: Path) -> None:
        """The objects that each destination's profile wants: one set for all destinations of a profile."""
        results: list[Arrival] = []
        by_profile: dict[str, tuple[str, ...]] = {}
        lineages: dict[str, dict[str, str]] = {}
        left_out: set[str] = set()
        for profile in sorted({plan.profile_of(destination) for destination in plan.destinations}):
            finding = found.finding(profile, found.task.lineage or self._lineage_of_earlier(lease, profile))
            kinds = plan.outputs or finding.profile.objects
            arrivals = _staged(dicom_objects(finding, kinds).values(), directory / profile, lease.job_id)
            results += arrivals
            by_profile[profile] = tuple(arrival.facts.sop_instance_uid for arrival in arrivals)
            left_out |= {kind for kind in kinds if not (finding.found or FORMATS[kind].says_nothing_found)}
            if finding.found:
                lineages[profile] = asdict(finding.outcome.following)
        deliveries = [
            self._delivery(lease, plan, destination, uids)
            for destination in plan.destinations
            if (uids := by_profile[plan.profile_of(destination)])
        ]
        output = {
            "sop_instance_uids": [result.facts.sop_instance_uid for result in results],
            "lineages": lineages,
            "left_out": sorted(left_out),
        }
        conclude(
            self.ledger.database,
            self.ledger.store,
            lease,
            results=results,
            deliveries=deliveries,
            output=output | found.said,
            reason="" if results else "nothing-found",
        )

    def _lineage_of_earlier(self, lease: Lease, profile: str) -> Lineage | None:
        """Of the nearest earlier job on this series that found something for the profile."""
        job_id = lease.predecessor_id
        while job_id:
            earlier = self.ledger.jobs.get(job_id)
            if noted := earlier.output.get("lineages", {}).get(profile):
                return Lineage(**noted)
            job_id = earlier.predecessor_id
        return None

    def _delivery(self, lease: Lease, plan: SeriesPlan, destination: str, uids: tuple[str, ...]) -> NewJob:
        return NewJob(
            kind="delivery",
            key=f"delivery:{lease.job_id}:{destination}",
            lane=destination,
            plan=DeliveryPlan(rule=plan.rule, destination=destination, sop_instance_uids=uids).document(),
            priority=Priority.URGENT,  # what is computed should not wait behind what is not
            study_instance_uid=lease.study_instance_uid,
            series_instance_uid=lease.series_instance_uid,
            series_revision=lease.series_revision,
            parent_id=lease.job_id,
            max_attempts=self.settings.delivery_attempts,
            trail=Trail(lease.trail.request_id, current_traceparent() or lease.trail.traceparent),
        )

    def _conclude_request(self, lease: Lease, plan: RequestPlan, found: _Found, directory: Path) -> None:
        result = rendered(plan.format, found.finding(plan.profile, found.task.lineage))
        staged, key = directory / "result", result_key(lease.job_id, lease.token)
        staged.write_bytes(result.body)
        self.ledger.store.put([(staged, key)])
        output: dict[str, Any] = {"key": key, "media_type": result.media_type, "file_name": result.file_name}
        output |= found.said | {"server_timing": found.stages.server_timing()}
        if self.audit.enabled:  # for the audit of who fetches it
            study = study_of(found.task.source)
            output["study"] = {"study_instance_uid": study.study_instance_uid, "patient_id": study.patient_id}
        try:
            self.ledger.jobs.end(lease, state="done", output=output)
        except LeaseLost:
            self.ledger.store.remove(key)
            raise
        for used in plan.keys:
            self.ledger.store.remove(used)


@dataclass(frozen=True, eq=False)
class _Task:
    """What a job is about. `lineage`: of an earlier result of ours among its prompts."""

    source: Series
    prompts: Prompts
    lineage: Lineage | None


@dataclass(frozen=True, eq=False)
class _Found:
    """What the networks made of a task: every result of the job is written from it."""

    task: _Task
    mask: Mask
    bundle: Bundle
    stages: Stages
    profiles_dir: Path | None

    @property
    def said(self) -> dict[str, Any]:
        """For the job's output."""
        return {"found": bool(self.mask.voxels.any()), "bundle": self.bundle.identity}

    def finding(self, profile: str, lineage: Lineage | None) -> Finding:
        """Raises: UnknownProfile."""
        wishes = profile_named(profile, self.profiles_dir)
        return Finding(self.task.source, self.mask, self.task.prompts, self.bundle, self.stages, wishes, lineage)


def _staged(contents: Iterable[bytes], directory: Path, job_id: str) -> list[Arrival]:
    directory.mkdir()
    arrivals = []
    for number, content in enumerate(contents):
        path = directory / f"result-{number:04}"
        path.write_bytes(content)
        arrivals.append(Arrival(path, read_facts(path), Origin("result", job_id=job_id)))
    return arrivals


def result_key(job_id: str, token: int) -> str:
    """Each claim writes its own, so that an overtaken worker harms nothing."""
    return f"requests/{job_id}/result-{token}"


def _is_seg(held: HeldInstance) -> bool:
    return held.sop_class_uid.startswith("1.2.840.10008.5.1.4.1.1.66")


def _task(source: Series, document: PromptDocument, organ_mask: Path | None, mask: Path | None) -> _Task:
    prompts = resolve(
        document,
        source,
        organ_mask=read_mask(organ_mask, source) if organ_mask else None,
        mask=read_mask(mask, source) if mask else None,
    )
    return _Task(source, prompts, read_lineage(mask))
