"""What the rules make of a complete series, and why: pure functions of its header and of the routing file.

Never segmented, whatever the rules say: results of ours, secondary captures, objects without a volume, quality-control
images. Then the first rule whose every condition holds decides. Each answer carries its reasons, which name keywords
and conditions but no value of a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.dicom.keywords import Keywords
from service.rules.document import Routing, Rule, Test

OWN_MANUFACTURER = "TAGS"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame variants, .7.1 to .7.4
IMAGES = {  # SOP classes that can be a volume
    "1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.2.1": "CT", "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR", "1.2.840.10008.5.1.4.1.1.4.1": "MR", "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}  # fmt: skip
QUALITY_CONTROL_NAMES = (
    "PatientName", "PatientID", "StudyDescription", "SeriesDescription", "ProtocolName", "BodyPartExamined",
)  # fmt: skip
ANNOTATION_MODALITIES = ("SEG", "SR", "PR")


@dataclass(frozen=True)
class Candidate:
    """A series as rules see it: one image's header, and what the ledger knows."""

    keywords: Keywords
    instances: int
    via: str = ""
    calling_ae: str = ""
    called_ae: str = ""
    own_result: bool = False

    def values(self, name: str) -> tuple[str, ...]:
        own: Mapping[str, tuple[str, ...]] = {
            "via": (self.via,),
            "calling_ae": (self.calling_ae,),
            "called_ae": (self.called_ae,),
            "instances": (str(self.instances),),
        }
        return own.get(name) or self.keywords.get(name, ())

    def text(self, name: str) -> str:
        return "\\".join(self.keywords.get(name, ()))

    @property
    def slice_thickness_mm(self) -> float:
        return _number(self.keywords.get("SliceThickness", ())) or float("inf")


@dataclass(frozen=True)
class Decision:
    """`rule` is None for a refusal, whose slug is `reason`. `why` explains, one line per rule looked at."""

    rule: Rule | None
    reason: str
    why: tuple[str, ...]


def decide(candidate: Candidate, routing: Routing, *, others: Sequence[Candidate] = ()) -> Decision:
    """Args: others: the same study's other series, among which a rule may choose."""
    reason = exclusion(candidate, routing)
    if reason:
        return Decision(None, reason, (EXCLUSION_TEXTS[reason],))
    why: list[str] = []
    for rule in routing.rules:
        failed = failed_conditions(candidate, rule)
        if failed:
            why.append(f"rule {rule.name}: {'; '.join(failed)}")
            continue
        rivals = [other for other in others if not exclusion(other, routing) and not failed_conditions(other, rule)]
        if not _is_chosen(candidate, rule, rivals):
            return Decision(
                None, "not-chosen", (*why, f"rule {rule.name}: matches, but another series is {rule.choose}")
            )
        return Decision(rule, "", (*why, f"rule {rule.name}: matches"))
    return Decision(None, "no-rule", tuple(why) or ("there is no rule",))


EXCLUSION_TEXTS = {
    "own-result": "a result of this service is never segmented",
    "secondary-capture": "a secondary capture is never segmented",
    "annotation": "an annotation is no volume; it may serve as the prompt of the series that it refers to",
    "not-an-image": "only CT and MR images form a volume",
    "localizer": "a localizer is never segmented",
    "quality-control": "a quality-control phantom is never segmented",
}


def exclusion(candidate: Candidate, routing: Routing) -> str:
    """A slug of EXCLUSION_TEXTS; "" for a series that rules may look at."""
    sop_class = candidate.text("SOPClassUID")
    if candidate.own_result or candidate.text("Manufacturer") == OWN_MANUFACTURER:
        return "own-result"
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}."):
        return "secondary-capture"
    if candidate.text("Modality") in ANNOTATION_MODALITIES:
        return "annotation"
    if sop_class not in IMAGES:
        return "not-an-image"
    if "LOCALIZER" in candidate.values("ImageType"):
        return "localizer"
    pattern = re.compile(routing.exclusions.quality_control, re.IGNORECASE)
    named = any(
        pattern.search(candidate.text(name).replace("^", " ").replace("_", " ")) for name in QUALITY_CONTROL_NAMES
    )
    if named or candidate.text("QualityControlImage").upper() == "YES":
        return "quality-control"
    return ""


def failed_conditions(candidate: Candidate, rule: Rule) -> list[str]:
    """What of a rule does not hold, in words without values."""
    return [
        f"{name} {_described(test)}" for name, test in rule.match.items() if not _holds(candidate.values(name), test)
    ]


def _holds(values: tuple[str, ...], test: Test) -> bool:
    if test.absent:
        return not values
    if not values:
        return False
    if test.equals and not {value.casefold() for value in values} & {value.casefold() for value in test.equals}:
        return False
    if test.matches and not any(re.search(test.matches, value, re.IGNORECASE) for value in values):
        return False
    if test.at_least is None and test.at_most is None:
        return True
    number = _number(values)
    if number is None:
        return False
    return (test.at_least is None or number >= test.at_least) and (test.at_most is None or number <= test.at_most)


def _described(test: Test) -> str:
    if test.absent:
        return "is there"
    parts = []
    if test.equals:
        parts.append(f"is not {' or '.join(test.equals)}")
    if test.matches:
        parts.append(f"does not match {test.matches}")
    if test.at_least is not None:
        parts.append(f"is not at least {test.at_least:g}")
    if test.at_most is not None:
        parts.append(f"is not at most {test.at_most:g}")
    return " or ".join(parts)


def _is_chosen(candidate: Candidate, rule: Rule, rivals: Sequence[Candidate]) -> bool:
    if rule.choose == "most-images":
        return all(candidate.instances >= other.instances for other in rivals)
    if rule.choose == "thinnest":
        return all(candidate.slice_thickness_mm <= other.slice_thickness_mm for other in rivals)
    return True


def _number(values: Sequence[str]) -> float | None:
    try:
        return float(values[0])
    except (IndexError, ValueError):
        return None
