"""Why a destination did not get something. Not of the error tree: no caller is answered with it, a job records it."""

from __future__ import annotations


class DeliveryFailed(Exception):
    """`reason` is a slug, `detail` safe text. `unreachable` means that the destination as a whole is in trouble."""

    def __init__(self, reason: str, detail: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.unreachable = reason, detail, unreachable


def unreachable(detail: str) -> DeliveryFailed:
    return DeliveryFailed("destination-unreachable", detail, unreachable=True)
