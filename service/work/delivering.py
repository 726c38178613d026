"""Delivery jobs: results of the ledger to one destination, with its circuit noted. Blocking."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.audit.event import AuditEvent, Participant, Study, beginning, transferred
from service.audit.trail import AuditTrail
from service.delivery.deliver import deliver
from service.delivery.failure import DeliveryFailed
from service.dicomweb.client import Outgoing
from service.ledger.jobs import Lease
from service.ledger.ledger import Ledger
from service.ledger.series import HeldInstance
from service.rules.document import Destination, Routing
from service.work.plans import DeliveryPlan


@dataclass(frozen=True, eq=False)
class Deliverer:
    """Runs jobs of the kind "delivery"."""

    ledger: Ledger
    ae_title: str
    audit: AuditTrail

    def run(self, lease: Lease, routing: Routing, enter: Callable[[str], None]) -> None:
        """Raises: DeliveryFailed, LeaseLost; AuditUnavailable, before or after sending: it is then tried again."""
        plan = DeliveryPlan.model_validate(lease.plan)
        destination = routing.destinations.get(plan.destination)
        if destination is None:
            raise DeliveryFailed("unknown-destination", "the routing file lists no such destination any more")
        held = self.ledger.series.instances(sop_instance_uids=plan.sop_instance_uids)
        directory = self.ledger.staging.directory()
        try:
            paths = self.ledger.store.fetch([item.object_key for item in held], directory)
            objects = [Outgoing.of(path, item) for item, path in zip(held, paths, strict=True)]
            self.audit_delivery(beginning, plan.destination, destination, lease.study_instance_uid, held)
            proof = deliver(
                destination,
                objects,
                job_id=lease.job_id,
                ae_title=self.ae_title,
                commitments=self.ledger.commitments,
                stage=enter,
            )
            self.audit_delivery(transferred, plan.destination, destination, lease.study_instance_uid, held)
        except DeliveryFailed as error:
            if error.unreachable or error.reason == "not-verified":
                self.ledger.circuits.note_failure(plan.destination)
            raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        self.ledger.circuits.note_success(plan.destination)
        self.ledger.jobs.end(lease, state="done", output={"verified": proof, "objects": len(objects)})

    def audit_delivery(
        self,
        event: Callable[[Participant, Participant, Study], AuditEvent],
        name: str,
        destination: Destination,
        study_instance_uid: str,
        held: Sequence[HeldInstance],
    ) -> None:
        """Raises: AuditUnavailable."""
        if not self.audit.enabled:
            return
        patient_id = self.ledger.series.patient_id(study_instance_uid)
        study = Study(study_instance_uid, patient_id, dict(Counter(item.sop_class_uid for item in held)))
        us = Participant(**{**vars(self.audit.us), "requestor": True})
        self.audit.record(event(us, Participant(name, network=destination.host), study))
