"""Complete series -> decisions and jobs. Whichever replica looks first decides; each revision is decided once.

One series that cannot be read is refused by itself and holds up no other. Blocking.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from opentelemetry.trace import Tracer

from service.dicom.annotations import referenced_instances
from service.dicom.keywords import read_keywords
from service.errors import LedgerRefused, TagsError
from service.ledger.jobs import NewJob, Priority
from service.ledger.ledger import Ledger
from service.ledger.series import MATCHED, REFUSED, HeldInstance, HeldSeries
from service.ledger.trails import Trail
from service.rules.decision import ANNOTATION_MODALITIES, Candidate, Decision, decide
from service.rules.document import Routing, Rule
from service.telemetry.tracing import OFF, current_traceparent, span
from service.work.plans import SeriesPlan


class Decider:
    """Looks at what is due. Args: report: called with what each decision came to, a slug, and whose it is."""

    def __init__(
        self, ledger: Ledger, report: Callable[[str, Trail], None], *, max_attempts: int, tracer: Tracer = OFF
    ) -> None:
        self._ledger, self._report, self._max_attempts, self._tracer = ledger, report, max_attempts, tracer

    def look(self, routing: Routing) -> int:
        """Decide everything that is due. Returns: how many. Raises: LedgerUnavailable."""
        decided = 0
        for held in self._ledger.series.due(routing.completeness.quiet_s):
            trail = self._ledger.series.trail_of(held.series_instance_uid)
            with span(self._tracer, "decide", parent=trail.traceparent) as current:
                try:
                    reason = self._decide(held, routing)
                except LedgerRefused:
                    raise
                except TagsError as error:
                    reason = error.slug
                    self._ledger.series.decide(held, decision=REFUSED, reason=reason, jobs=())
                current.set_attributes({"tags.request_id": trail.request_id, "tags.reason": reason})
                if reason:
                    decided += 1
                    self._report(reason, trail)
        return decided

    def _decide(self, held: HeldSeries, routing: Routing) -> str:
        """Returns: a slug; "" when it is too early."""
        table = self._ledger.series
        candidate, first = self._candidate(held)
        decision = decide(candidate, routing)
        if decision.rule and decision.rule.choose != "each":
            if not table.study_is_quiet(held.study_instance_uid, routing.completeness.quiet_s):
                return ""
            rest = [item for item in table.of_study(held.study_instance_uid) if item != held and item.instances]
            decision = decide(candidate, routing, others=[self._candidate(item)[0] for item in rest])
        if decision.reason == "annotation":
            jobs = self._jobs_of_annotation(held, first, routing)
            table.decide(held, decision=REFUSED, reason="annotation", jobs=jobs)
            return "annotation"
        if decision.rule is None:
            table.decide(held, decision=REFUSED, reason=decision.reason, jobs=())
            return decision.reason
        job = self._job(held, decision, routing)
        if job is None:
            table.decide(held, decision=REFUSED, reason="awaiting-annotation", jobs=())
            return "awaiting-annotation"
        table.decide(held, decision=MATCHED, reason="", jobs=[job])
        return "matched"

    def _candidate(self, held: HeldSeries) -> tuple[Candidate, HeldInstance]:
        """The series by its first image's header."""
        first = self._ledger.series.instances(series_instance_uid=held.series_instance_uid)[0]
        with _Fetched(self._ledger, [first]) as (path,):
            keywords = read_keywords(path)
        candidate = Candidate(
            keywords, held.instances, first.via, first.calling_ae, first.called_ae, own_result=first.via == "result"
        )
        return candidate, first

    def _job(self, held: HeldSeries, decision: Decision, routing: Routing) -> NewJob | None:
        """None while the annotation that the rule asks for is not here."""
        rule = decision.rule
        assert rule is not None
        prompts = rule.prompts
        annotations = self._annotations(held, prompts.annotation) if prompts.annotation else []
        if prompts.annotation and not annotations and not prompts.text:
            return None
        organs = self._annotations(held, ("SEG",)) if prompts.organ_mask else []
        return self._new_job(held, rule, annotations, organs, routing)

    def _new_job(
        self,
        held: HeldSeries,
        rule: Rule,
        annotations: list[HeldInstance],
        organs: list[HeldInstance],
        routing: Routing,
    ) -> NewJob:
        plan = SeriesPlan(
            rule=rule.name,
            text=rule.prompts.text,
            target=rule.prompts.target,
            annotations=tuple(item.sop_instance_uid for item in annotations),
            organ_mask=organs[-1].sop_instance_uid if organs else None,
            acquisition=rule.acquisition,
            bundle=rule.bundle,
            outputs=rule.outputs,
            destinations=rule.destinations,
            profiles={name: rule.profile or routing.destinations[name].profile for name in rule.destinations},
            deidentified=rule.deidentified,
        )
        marked = "+".join(sorted(item.object_key.rpartition("/")[2][:16] for item in annotations))
        return NewJob(
            kind="series",
            key=f"series:{held.series_instance_uid}:{held.revision}:{rule.name}:{marked}",
            plan=plan.document(),
            priority=Priority[rule.priority.upper()],
            study_instance_uid=held.study_instance_uid,
            series_instance_uid=held.series_instance_uid,
            series_revision=held.revision,
            max_attempts=self._max_attempts,
            predecessor_id=self._ledger.series.previous_job(held.series_instance_uid, rule.name),
            trail=self._trail(held),
        )

    def _trail(self, held: HeldSeries) -> Trail:
        """The receipt's id, and the span of this decision where there is one."""
        received = self._ledger.series.trail_of(held.series_instance_uid)
        return replace(received, traceparent=current_traceparent() or received.traceparent)

    def _annotations(self, held: HeldSeries, modalities: tuple[str, ...]) -> list[HeldInstance]:
        """Objects of these modalities in the same study that refer to an image of the series; none of ours."""
        table = self._ledger.series
        images = {item.sop_instance_uid for item in table.instances(series_instance_uid=held.series_instance_uid)}
        found = []
        for other in table.of_study(held.study_instance_uid):
            if other.modality in modalities:
                objects = table.instances(series_instance_uid=other.series_instance_uid)
                found += [item for item in objects if item.via != "result" and self._refers(item, images)]
        return found

    def _refers(self, item: HeldInstance, images: set[str]) -> bool:
        with _Fetched(self._ledger, [item]) as (path,):
            return bool(referenced_instances(path) & images)

    def _jobs_of_annotation(self, held: HeldSeries, first: HeldInstance, routing: Routing) -> list[NewJob]:
        """An annotation has arrived: the decided series that it refers to may have a rule that waits for one."""
        table, jobs = self._ledger.series, []
        with _Fetched(self._ledger, [first]) as (path,):
            wanted = sorted(referenced_instances(path))[:4000]
        series_uids = {item.series_instance_uid for item in table.instances(sop_instance_uids=wanted)}
        for source in table.of_study(held.study_instance_uid):
            if source.series_instance_uid not in series_uids or source.modality in ANNOTATION_MODALITIES:
                continue
            decision = decide(self._candidate(source)[0], routing)
            if decision.rule and held.modality in decision.rule.prompts.annotation:
                job = self._job(source, decision, routing)
                jobs += [job] if job else []
        return jobs


class _Fetched:
    """Local files of held instances, for as long as the context lasts."""

    def __init__(self, ledger: Ledger, held: list[HeldInstance]) -> None:
        self._ledger, self._held = ledger, held

    def __enter__(self) -> tuple[Path, ...]:
        self._directory = self._ledger.staging.directory()
        return self._ledger.store.fetch([item.object_key for item in self._held], self._directory)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
