"""What our objects say of the software that made them: one fixed device, for research use only."""

from __future__ import annotations

from importlib.metadata import version

import highdicom as hd
from pydicom import Dataset
from pydicom.sr.codedict import codes

from contract.bundle import Bundle
from service.dicom import attribute

MANUFACTURER = "TAGS"
MODEL_NAME = "TAGS inference service"
DEVICE_SERIAL_NUMBER = "research-use-only"  # one software, not one device per run
DEVICE_UID = "1.2.826.0.1.3680043.8.498.92166014236183417186279519713094118205"  # of the software, as an SR observer
RESEARCH_USE = "Research use only, not for diagnosis or treatment"
LO_LENGTH = 64  # characters of a Long String, PS3.5 6.2
# Modalities number their series below 1000, some up to 5 digits in steps; each kind of result has a thousand above.
SERIES_NUMBER_BASES = {"seg": 9000, "rtstruct": 19000, "sr": 29000, "sc": 39000}


def series_number(kind: str, source: Dataset) -> int:
    """Args: kind: a key of SERIES_NUMBER_BASES.  source: an image of the source series, whose number may be absent."""
    return SERIES_NUMBER_BASES[kind] + (attribute.integer(source, "SeriesNumber") or 0) % 1000


def software_versions(bundle: Bundle) -> tuple[str]:
    """This service and the bundle, as one value."""
    return (f"{version('tags-service')} with {bundle.identity}"[:LO_LENGTH],)


def contributing_equipment(bundle: Bundle) -> hd.ContributingEquipment:
    """The software as processing equipment, with its restriction, beside the scanner that highdicom adds."""
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        contribution_description=f"Segmentation from a prompt. {RESEARCH_USE}.",
    )
