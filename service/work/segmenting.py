"""Segmentation jobs: a held series by a rule, or a request that did not wait. The same code path as `POST /segment`.

What enters: a lease. What leaves, in one transaction: results in the ledger, deliveries in the queue, the job's end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread
from opentelemetry.trace import Tracer

from service.audit.event import Participant, Study, accessed
from service.audit.trail import AuditTrail
from service.dicom.annotations import ImagePoint, SpacePoint, read_points
from service.dicom.facts import read_facts
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.lineage import read_lineage
from service.dicom.profiles import profile_named
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import MaskMismatch, ModelNotReady, NoPrompts, NothingFound
from service.inference.engine import Engine
from service.ledger.jobs import Lease, LeaseLost, NewJob, Priority
from service.ledger.ledger import Ledger
from service.ledger.outcome import conclude
from service.ledger.receiving import Arrival, Origin
from service.ledger.series import HeldInstance
from service.ledger.trails import Trail
from service.mask_file import read_mask
from service.prompt_document import Point, PromptDocument, read_prompt_document, resolve
from service.results import Result, render
from service.segment import segment
from service.settings import Settings
from service.subject import study_of
from service.telemetry.stages import Stages
from service.telemetry.tracing import OFF, current_traceparent
from service.work.plans import DeliveryPlan, RequestPlan, SeriesPlan

MAX_ANNOTATION_POINTS = 16  # of one series; the network has 32 slots


@dataclass(frozen=True, eq=False)
class Segmenter:
    """Runs jobs of the kinds "series" and "request" on an engine."""

    ledger: Ledger
    engine: Engine
    settings: Settings
    audit: AuditTrail
    tracer: Tracer = OFF

    async def run_series(self, lease: Lease, enter: Callable[[str], None]) -> dict[str, float]:
        """Returns: seconds by stage. Raises: LeaseLost, and the leaves that `POST /segment` answers."""
        plan, stages = SeriesPlan.model_validate(lease.plan), Stages(on_enter=enter, tracer=self.tracer)
        if plan.bundle and plan.bundle != self.engine.bundle.name:
            raise ModelNotReady(f"the rule asks for the bundle {plan.bundle}, which is not served here")
        table = self.ledger.series
        if await to_thread.run_sync(table.revision_of, lease.series_instance_uid) != lease.series_revision:
            await to_thread.run_sync(partial(self.ledger.jobs.end, lease, state="cancelled", reason="superseded"))
            return {}
        directory = await to_thread.run_sync(self.ledger.staging.directory)
        try:
            with stages("headers"):
                source = await to_thread.run_sync(self._read_held, lease.series_instance_uid, directory)
            await to_thread.run_sync(self._audit, source, f"rule:{plan.rule}")
            prompts = await to_thread.run_sync(self._prompts_of_plan, plan, source, directory)
            mask = await segment(source, prompts, self.engine, stages)
            await to_thread.run_sync(self._conclude, lease, plan, source, mask, prompts, stages, directory)
        finally:
            await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
        return stages.seconds

    async def run_request(self, lease: Lease, enter: Callable[[str], None]) -> dict[str, float]:
        """Returns: seconds by stage. Raises: as above."""
        plan, stages = RequestPlan.model_validate(lease.plan), Stages(on_enter=enter, tracer=self.tracer)
        directory = await to_thread.run_sync(self.ledger.staging.directory)
        try:
            fetch = partial(self.ledger.store.fetch, plan.keys, directory)
            paths = dict(zip(plan.keys, await to_thread.run_sync(fetch), strict=True))
            with stages("headers"):
                files = [paths[key] for key in plan.files]
                source = await to_thread.run_sync(self._read, files, plan.series_instance_uid)
            study = await to_thread.run_sync(self._audit, source, plan.requested_by)
            organ_mask, mask = (paths[key] if key else None for key in (plan.organ_mask, plan.mask))
            document = read_prompt_document(plan.prompts)
            prompts = await to_thread.run_sync(_resolve, document, source, organ_mask, mask)
            found = await segment(source, prompts, self.engine, stages)
            lineage = await to_thread.run_sync(read_lineage, mask)
            write = partial(
                render, plan.format, source, found, prompts, self.engine.bundle, stages,
                profile=profile_named(plan.profile, self.settings.profiles_dir), lineage=lineage,
            )  # fmt: skip
            await to_thread.run_sync(self._conclude_request, lease, plan, write, found, stages, directory, study)
        finally:
            await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
        return stages.seconds

    def _audit(self, source: Series, asked_by: str) -> Study:
        """Raises: AuditUnavailable."""
        study = study_of(source)
        self.audit.record(accessed(Participant(asked_by or "unknown", requestor=True), self.audit.us, study))
        return study

    def _read_held(self, series_instance_uid: str, directory: Path) -> Series:
        held = self.ledger.series.instances(series_instance_uid=series_instance_uid)
        return self._read(self._fetch(held, directory), series_instance_uid)

    def _read(self, files: Sequence[Path], series_instance_uid: str | None) -> Series:
        limits = SeriesLimits(max_instances=self.settings.max_instances, max_voxels=self.settings.max_voxels)
        return read_series(files, series_instance_uid=series_instance_uid, limits=limits)

    def _fetch(self, held: Sequence[HeldInstance], directory: Path) -> tuple[Path, ...]:
        return self.ledger.store.fetch([item.object_key for item in held], directory)

    def _prompts_of_plan(self, plan: SeriesPlan, source: Series, directory: Path) -> Prompts:
        """Raises: NoPrompts: neither a text nor anything marked. MaskMismatch: an annotation cannot be laid onto it."""
        wanted = [*plan.annotations, *([plan.organ_mask] if plan.organ_mask else [])]
        held = {item.sop_instance_uid: item for item in self.ledger.series.instances(sop_instance_uids=wanted)}
        (annexes := directory / "annotations").mkdir()
        paths = dict(zip(held, self._fetch(list(held.values()), annexes), strict=True))
        if missing := set(wanted) - paths.keys():
            raise MaskMismatch(f"{len(missing)} annotations that the job names are not held any more")
        masks = [paths[uid] for uid in plan.annotations if _is_seg(held[uid])]
        points = _points([paths[uid] for uid in plan.annotations if not _is_seg(held[uid])], source)
        if plan.annotations and not masks and not points and not plan.text:
            raise NoPrompts("the annotation marks no place in this series")
        document = PromptDocument(text=plan.text, target=plan.target, points=tuple(points))
        organ_mask = paths[plan.organ_mask] if plan.organ_mask else None
        return _resolve(document, source, organ_mask, masks[-1] if masks else None)

    def _conclude(
        self,
        lease: Lease,
        plan: SeriesPlan,
        source: Series,
        mask: Mask,
        prompts: Prompts,
        stages: Stages,
        directory: Path,
    ) -> None:
        results: list[Arrival] = []
        left_out: list[str] = []
        for format in plan.outputs:
            try:
                result = render(format, source, mask, prompts, self.engine.bundle, stages)
            except NothingFound:
                left_out.append(format)
                continue
            staged = directory / f"result-{format}"
            staged.write_bytes(result.body)
            results.append(Arrival(staged, read_facts(staged), Origin("result", job_id=lease.job_id)))
        uids = tuple(result.facts.sop_instance_uid for result in results)
        deliveries = [self._delivery(lease, plan, name, uids) for name in plan.destinations] if uids else []
        found = bool(mask.voxels.any())
        conclude(
            self.ledger.database,
            self.ledger.store,
            lease,
            results=results,
            deliveries=deliveries,
            output={"found": found, "sop_instance_uids": list(uids), "left_out": left_out},
            reason="" if uids else "nothing-found",
        )

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

    def _conclude_request(
        self,
        lease: Lease,
        plan: RequestPlan,
        write: Callable[[], Result],
        found: Mask,
        stages: Stages,
        directory: Path,
        study: Study,
    ) -> None:
        result = write()
        staged, key = directory / "result", result_key(lease.job_id, lease.token)
        staged.write_bytes(result.body)
        self.ledger.store.put([(staged, key)])
        output: dict[str, Any] = {"key": key, "media_type": result.media_type, "file_name": result.file_name}
        output |= {"found": bool(found.voxels.any()), "server_timing": stages.server_timing()}
        if self.audit.enabled:  # for the audit of who fetches it
            output["study"] = {"study_instance_uid": study.study_instance_uid, "patient_id": study.patient_id}
        try:
            self.ledger.jobs.end(lease, state="done", output=output)
        except LeaseLost:
            self.ledger.store.remove(key)
            raise
        for used in plan.keys:
            self.ledger.store.remove(used)


def result_key(job_id: str, token: int) -> str:
    """Each claim writes its own, so that an overtaken worker harms nothing."""
    return f"requests/{job_id}/result-{token}"


def _is_seg(held: HeldInstance) -> bool:
    return held.sop_class_uid.startswith("1.2.840.10008.5.1.4.1.1.66")


def _points(files: Sequence[Path], source: Series) -> list[Point]:
    """Marked places that lie in images of this series, as a request would name them."""
    images, frame = set(source.sop_instance_uids), source.geometry.frame_of_reference_uid
    points: list[Point] = []
    for file in files:
        for place in read_points(file):
            if isinstance(place, ImagePoint) and place.sop_instance_uid in images:
                points.append(Point(sop_instance_uid=place.sop_instance_uid, pixel=place.pixel))
            elif isinstance(place, SpacePoint) and place.frame_of_reference_uid in ("", frame):
                points.append(Point(lps_mm=place.lps_mm))
    return points[:MAX_ANNOTATION_POINTS]


def _resolve(document: PromptDocument, source: Series, organ_mask: Path | None, mask: Path | None) -> Prompts:
    return resolve(
        document,
        source,
        organ_mask=read_mask(organ_mask, source) if organ_mask else None,
        mask=read_mask(mask, source) if mask else None,
    )
