"""All checks in their order, from the machine outwards. One that fails keeps no other from being made."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

from anyio import to_thread

from contract.bundle import Bundle
from service.doctor import access, ingress, machine, model, storage
from service.doctor.check import Check, examined
from service.doctor.pacs import FIX_LISTENER, FIX_WEB, check_listener, check_peers
from service.preview import RESEARCH_USE
from service.settings import Settings
from service.watchdog import TRAVEL_S

ORDER = {"red": 3, "amber": 2, "green": 1, "skipped": 0}


@dataclass(frozen=True)
class Findings:
    """What an examination came to. `bundle`: name and version; "" where it cannot be read."""

    at: str  # ISO 8601, UTC
    version: str
    bundle: str
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Sequence[Check], bundle: str = "") -> Findings:
        """As of now, by this version."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(at, version("tags-service"), bundle, tuple(checks))

    @property
    def is_red(self) -> bool:
        return any(check.state == "red" for check in self.checks)

    @property
    def verdict(self) -> str:
        """The worst state that is there."""
        return max((check.state for check in self.checks), key=ORDER.__getitem__, default="skipped")

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        checks = [
            {"name": check.name, "state": check.state, "found": check.found, "fix": check.fix, "seconds": check.seconds}
            for check in self.checks
        ]
        about = {"at": self.at, "version": self.version, "bundle": self.bundle, "research_use": RESEARCH_USE}
        return {"verdict": self.verdict, **about, "checks": checks}


async def examine(settings: Settings, *, store: bool = True, on_check: Callable[[Check], None] = print) -> Findings:
    """Args: store: whether a phantom is sent to the destinations. on_check: told each check as it is made."""
    examiner = _Examiner(settings, store, on_check)
    await examiner.machine()
    try:
        await examiner.storage()
        await examiner.model()
        await examiner.pacs()
        await examiner.service()
        examiner.note(machine.check_clock(examiner.offsets_s))
    finally:
        if examiner.opened and examiner.opened.ledger:
            await to_thread.run_sync(examiner.opened.ledger.close)
    return Findings.of(examiner.checks, examiner.bundle.identity if examiner.bundle else "")


class _Examiner:
    """Gathers the checks, and what later ones need of earlier ones."""

    def __init__(self, settings: Settings, store: bool, on_check: Callable[[Check], None]) -> None:
        self._settings, self._store, self._on_check = settings, store, on_check
        self.checks: list[Check] = []
        self.offsets_s: dict[str, float] = {}
        self.opened: storage.Opened | None = None
        self.bundle: Bundle | None = None

    def note(self, checks: Sequence[Check]) -> None:
        for check in checks:
            self.checks.append(check)
            self._on_check(check)

    async def machine(self) -> None:
        self.note(machine.check_settings(self._settings, os.environ))
        self.routing, checks = machine.check_routing(self._settings)
        self.note(checks)
        self.note(await examined("disk", _thread(machine.check_disk, self._settings), fix="Mend the disk."))

    async def storage(self) -> None:
        async def open_database() -> Sequence[Check]:
            self.opened = await to_thread.run_sync(storage.open_database, self._settings, abandon_on_cancel=True)
            if self.opened.clock_offset_s is not None:
                self.offsets_s["database"] = self.opened.clock_offset_s
            return self.opened.checks

        self.note(await examined("database", open_database, fix=storage.FIX_DATABASE))
        check_store = _thread(storage.check_store, self._settings)
        self.note(await examined("object store", check_store, fix=storage.FIX_STORE))

    async def model(self) -> None:
        async def check_bundle() -> Sequence[Check]:
            self.bundle, checks = await to_thread.run_sync(model.check_bundle, self._settings)
            return checks

        self.note(await examined("bundle", check_bundle, fix=model.FIX_BUNDLE))
        if self.bundle is None:
            self.note([Check("engine", "skipped", "it needs the bundle")])
            return
        fix = model.FIX_TRITON if self._settings.engine == "triton" else model.FIX_EMBEDDED
        self.note(await examined("engine", partial(model.check_engine, self._settings), fix=fix))
        self.note(await examined("TensorRT plans", _thread(model.check_plans, self.bundle), fix=model.FIX_PLAN))

    async def pacs(self) -> None:
        ledger = self.opened.ledger if self.opened else None

        async def check() -> Sequence[Check]:
            told = await to_thread.run_sync(
                partial(
                    check_peers,
                    self.routing,
                    self._settings.dimse_ae_title,
                    ledger.commitments if ledger else None,
                    store=self._store,
                ),
                abandon_on_cancel=True,
            )
            self.offsets_s |= told.offsets_s
            return told.checks

        self.note(await examined("PACS", check, fix=FIX_WEB))

    async def service(self) -> None:
        check_file = _thread(ingress.check_certificate_file, self._settings)
        self.note(await examined("certificate file", check_file, fix=ingress.FIX_FILE))
        check_issuer = partial(access.check_issuer, self._settings)
        self.note(await examined("access: issuer", check_issuer, fix=access.FIX_ISSUER))

        async def reach() -> Sequence[Check]:
            checks, offsets_s = await ingress.check_reach(self._settings)
            self.offsets_s |= offsets_s
            return checks

        reached = await examined("service", reach, fix=ingress.FIX_REACH)
        self.note(reached)
        if not any(check.state == "green" for check in reached):
            self.note([Check("phantom", "skipped", "the service cannot be asked")])
            return
        certificate, limits = (
            partial(ask, self._settings) for ask in (ingress.check_certificate, ingress.check_limits)
        )
        self.note(await examined("certificate", certificate, fix=ingress.FIX_CERTIFICATE))
        self.note(await examined("access", partial(access.check_access, self._settings), fix=ingress.FIX_REACH))
        listener = _thread(check_listener, self._settings)
        self.note(await examined("DICOM port", listener, fix=FIX_LISTENER))
        self.note(await examined("body limit", limits, fix=ingress.FIX_REACH))
        ledger = self.opened.ledger if self.opened else None
        if ledger is None:
            self.note([Check("phantom", "skipped", "its traces could not be removed without the database")])
            return
        journey = partial(ingress.check_journey, self._settings, ledger)
        self.note(await examined("phantom", journey, fix=ingress.FIX_JOURNEY, limit_s=2 * TRAVEL_S))


def _thread(work: Callable[..., Sequence[Check]], *arguments: Any) -> Callable[[], Awaitable[Sequence[Check]]]:
    async def run() -> Sequence[Check]:
        return await to_thread.run_sync(work, *arguments)

    return run
