"""Whom a file is about, for the audit trail: study, patient and SOP class, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from service.audit.event import Study
from service.dicom.keywords import read_keywords
from service.dicom.series import Series


def study_of(series: Series) -> Study:
    """Raises: NotDicom: the first image cannot be read any more."""
    keywords = read_keywords(series.headers[0].path)
    counts = Counter({header.sop_instance_uid: header.sop_class_uid for header in series.headers}.values())
    return Study(series.study_instance_uid, "".join(keywords.get("PatientID", ())), dict(counts))


def study_of_files(paths: Sequence[Path], study_instance_uid: str) -> Study:
    """Files of one study, such as a source gave them. Raises: NotDicom."""
    patient_id = "".join(read_keywords(paths[0]).get("PatientID", ())) if paths else ""
    return Study(study_instance_uid, patient_id)
