"""What is held, searched as QIDO-RS does: studies, series, instances by their attributes, in pages.

What enters: conditions on attributes that have a column. What leaves: records with DICOM JSON attributes, the newest
study first. Wildcards are DICOM's `*` and `?`; text is compared without regard to case.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, select, true

from service.errors import UnknownObject
from service.ledger.database import Database
from service.ledger.tables import instance, series

Level = Literal["studies", "series", "instances"]
SERIES_COLUMNS = {
    "StudyInstanceUID": series.c.study_instance_uid,
    "StudyDate": series.c.study_date,
    "StudyTime": series.c.study_time,
    "AccessionNumber": series.c.accession_number,
    "PatientID": series.c.patient_id,
    "PatientName": series.c.patient_name,
    "ReferringPhysicianName": series.c.referring_physician_name,
    "StudyID": series.c.study_id,
    "StudyDescription": series.c.study_description,
    "ModalitiesInStudy": series.c.modality,
    "Modality": series.c.modality,
    "SeriesInstanceUID": series.c.series_instance_uid,
    "SeriesNumber": series.c.series_number,
    "SeriesDescription": series.c.series_description,
    "BodyPartExamined": series.c.body_part,
}
INSTANCE_COLUMNS = {
    "SOPInstanceUID": instance.c.sop_instance_uid,
    "SOPClassUID": instance.c.sop_class_uid,
    "InstanceNumber": instance.c.instance_number,
}
SEARCHABLE: dict[Level, tuple[str, ...]] = {
    "studies": tuple(SERIES_COLUMNS),
    "series": tuple(SERIES_COLUMNS),
    "instances": (*SERIES_COLUMNS, *INSTANCE_COLUMNS),
}


@dataclass(frozen=True)
class Condition:
    """One attribute's: any of `values` (with wildcards), or within `between`."""

    keyword: str
    values: tuple[str, ...] = ()
    between: tuple[str, str] | None = None  # inclusive; "" for an open end


@dataclass(frozen=True)
class StudyRecord:
    study_instance_uid: str
    attributes: dict[str, Any] = field(repr=False)
    modalities: tuple[str, ...]
    series: int
    instances: int


@dataclass(frozen=True)
class SeriesRecord:
    study_instance_uid: str
    series_instance_uid: str
    attributes: dict[str, Any] = field(repr=False)
    instances: int


@dataclass(frozen=True)
class InstanceRecord:
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    object_key: str
    size_bytes: int
    attributes: dict[str, Any] = field(repr=False)
    series_attributes: dict[str, Any] = field(repr=False)


class Search:
    """Blocking; threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def studies(self, conditions: Sequence[Condition], *, limit: int, offset: int) -> list[StudyRecord]:
        """`ModalitiesInStudy` finds a study that has such a series."""
        with self._database.reading() as connection:
            page = (
                select(series.c.study_instance_uid)
                .where(series.c.instances > 0, *_series_conditions(conditions))
                .group_by(series.c.study_instance_uid)
                .order_by(func.max(series.c.study_date).desc(), series.c.study_instance_uid)
                .limit(limit)
                .offset(offset)
            )
            uids = list(connection.execute(page).scalars())
            held = select(series).where(series.c.study_instance_uid.in_(uids), series.c.instances > 0)
            rows = defaultdict(list)
            for row in connection.execute(held.order_by(series.c.first_received_at)):
                rows[row.study_instance_uid].append(row)
        return [
            StudyRecord(
                study_instance_uid=uid,
                attributes=json.loads(rows[uid][0].attributes),
                modalities=tuple(sorted({row.modality for row in rows[uid]})),
                series=len(rows[uid]),
                instances=sum(row.instances for row in rows[uid]),
            )
            for uid in uids
        ]

    def series(self, conditions: Sequence[Condition], *, limit: int, offset: int) -> list[SeriesRecord]:
        statement = select(series).where(series.c.instances > 0, *_series_conditions(conditions))
        statement = statement.order_by(
            series.c.study_instance_uid, series.c.series_number, series.c.series_instance_uid
        )
        with self._database.reading() as connection:
            rows = connection.execute(statement.limit(limit).offset(offset)).all()
        return [
            SeriesRecord(row.study_instance_uid, row.series_instance_uid, json.loads(row.attributes), row.instances)
            for row in rows
        ]

    def instances(
        self, conditions: Sequence[Condition], *, limit: int | None = None, offset: int = 0
    ) -> list[InstanceRecord]:
        """In the order in which they were received."""
        columns = [instance.c[name] for name in InstanceRecord.__dataclass_fields__ if name != "series_attributes"]
        statement = (
            select(*columns, series.c.attributes.label("series_attributes"))
            .join(series, series.c.series_instance_uid == instance.c.series_instance_uid)
            .where(instance.c.current, *_series_conditions(conditions), *_instance_conditions(conditions))
            .order_by(instance.c.series_instance_uid, instance.c.id)
        )
        statement = statement.offset(offset) if limit is None else statement.limit(limit).offset(offset)
        with self._database.reading() as connection:
            rows = connection.execute(statement).all()
        return [
            InstanceRecord(
                **dict(row._mapping)
                | {"attributes": json.loads(row.attributes), "series_attributes": json.loads(row.series_attributes)}
            )
            for row in rows
        ]

    def held(self, study: str, series_uid: str | None = None, sop: str | None = None) -> list[InstanceRecord]:
        """Everything under these UIDs. Raises: UnknownObject: nothing is."""
        named = (("StudyInstanceUID", study), ("SeriesInstanceUID", series_uid), ("SOPInstanceUID", sop))
        found = self.instances([Condition(keyword, (uid,)) for keyword, uid in named if uid])
        if not found:
            raise UnknownObject
        return found


def _series_conditions(conditions: Sequence[Condition]) -> list[ColumnElement[bool]]:
    expressed = []
    for condition in conditions:
        if condition.keyword not in SERIES_COLUMNS:
            continue
        expression = _expression(SERIES_COLUMNS[condition.keyword], condition)
        if condition.keyword == "ModalitiesInStudy":
            expression = series.c.study_instance_uid.in_(select(series.c.study_instance_uid).where(expression))
        expressed.append(expression)
    return expressed


def _instance_conditions(conditions: Sequence[Condition]) -> list[ColumnElement[bool]]:
    return [
        _expression(INSTANCE_COLUMNS[item.keyword], item) for item in conditions if item.keyword in INSTANCE_COLUMNS
    ]


def _expression(column: Any, condition: Condition) -> ColumnElement[bool]:
    if condition.between is not None:
        low, high = condition.between
        bounds = ([column >= low] if low else []) + ([column <= high] if high else [])
        return and_(true(), column != "", *bounds)
    exact = [value for value in condition.values if not _has_wildcard(value)]
    patterns = [value for value in condition.values if _has_wildcard(value)]
    alternatives: list[ColumnElement[bool]] = [func.lower(column).like(_like(value), escape="!") for value in patterns]
    if exact and "UID" in condition.keyword:
        alternatives.append(column.in_(exact))
    elif exact:
        alternatives.append(func.lower(column).in_([value.lower() for value in exact]))
    return or_(*alternatives)


def _has_wildcard(value: str) -> bool:
    return "*" in value or "?" in value


def _like(value: str) -> str:
    for character in "!%_":
        value = value.replace(character, f"!{character}")
    return value.lower().replace("*", "%").replace("?", "_")
