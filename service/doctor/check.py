"""One thing looked at, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import anyio

from service.delivery.failure import DeliveryFailed
from service.errors import TagsError
from service.telemetry.request_log import describe_fault
from service.tls import TlsInvalid

State = Literal["green", "amber", "red", "skipped"]
LONGEST_S = 120.0  # of one examination; the phantom's journey has a limit of its own


@dataclass(frozen=True)
class Check:
    """`found` and `fix` are safe text. Amber works, but a person should look; skipped says why in `found`."""

    name: str
    state: State
    found: str
    fix: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.state in ("amber", "red") and not self.fix:
            raise ValueError(f"{self.name} is {self.state} and says no fix")


Examination = Callable[[], Awaitable[Sequence[Check]]]


async def examined(name: str, examination: Examination, *, fix: str, limit_s: float = LONGEST_S) -> list[Check]:
    """Its checks, each with the seconds it took; one red check of this name with `fix` where it failed as a whole."""
    started = time.monotonic()
    try:
        with anyio.fail_after(limit_s):
            checks = list(await examination())
    except TimeoutError:
        checks = [Check(name, "red", f"no answer within {limit_s:g} s", fix)]
    except (TagsError, DeliveryFailed) as error:
        checks = [Check(name, "red", error.detail, fix)]
    except TlsInvalid as error:
        checks = [Check(name, "red", str(error), fix)]
    except OSError as error:
        checks = [Check(name, "red", error.strerror or type(error).__name__, fix)]
    except Exception as error:
        checks = [Check(name, "red", describe_fault(error), fix)]
    seconds = round(time.monotonic() - started, 2)
    return [replace(check, seconds=check.seconds or round(seconds / len(checks), 2)) for check in checks]
