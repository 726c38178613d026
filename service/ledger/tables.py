"""The ledger's tables. Times are seconds since the epoch by the database's clock (`Database.now`).

`series` and `instance` hold what was received and what is answered by QIDO-RS; `job` and `step` the work; `circuit`
the state of each destination. They hold patient data: the database belongs on a disk that may.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1
metadata = MetaData()

schema = Table("schema", metadata, Column("version", Integer, primary_key=True))

series = Table(
    "series",
    metadata,
    Column("series_instance_uid", String(64), primary_key=True),
    Column("study_instance_uid", String(64), nullable=False, index=True),
    # Searchable attributes as text; "" when absent.
    Column("patient_id", String(320), nullable=False, index=True),
    Column("patient_name", String(320), nullable=False),
    Column("study_date", String(8), nullable=False, index=True),
    Column("study_time", String(16), nullable=False),
    Column("accession_number", String(320), nullable=False, index=True),
    Column("study_id", String(320), nullable=False),
    Column("referring_physician_name", String(320), nullable=False),
    Column("study_description", String(320), nullable=False),
    Column("modality", String(16), nullable=False),
    Column("series_number", String(320), nullable=False),
    Column("series_description", String(320), nullable=False),
    Column("body_part", String(320), nullable=False),
    Column("attributes", Text, nullable=False),  # study's and series' attributes, DICOM JSON
    Column("instances", Integer, nullable=False),  # current ones
    Column("expected_instances", Integer),  # as its headers say
    Column("first_received_at", Double, nullable=False),
    Column("last_received_at", Double, nullable=False, index=True),
    Column("revision", Integer, nullable=False),  # rises with each change of its images
    Column("noticed_revision", Integer, nullable=False),  # the sender said that this one is complete
    Column("decided_revision", Integer, nullable=False),  # what the rules have looked at
    Column("decision", String(16), nullable=False),  # "", "matched" or "refused"
    Column("reason", String(64), nullable=False),  # slug
)

instance = Table(
    "instance",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # of the data set in its transfer syntax
    Column("revision", Integer, nullable=False),
    Column("predecessor_id", ForeignKey("instance.id")),  # the content that this one replaced
    Column("current", Boolean, nullable=False),
    Column("series_instance_uid", ForeignKey("series.series_instance_uid"), nullable=False),
    Column("study_instance_uid", String(64), nullable=False, index=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("instance_number", String, nullable=False),
    Column("attributes", Text, nullable=False),  # the instance's own attributes, DICOM JSON
    Column("size_bytes", BigInteger, nullable=False),
    Column("object_key", String, nullable=False),
    Column("via", String(8), nullable=False),  # stow, cstore, result
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("job_id", String(36), index=True),  # of a result: the job that made it
    Column("received_at", Double, nullable=False),
    UniqueConstraint("sop_instance_uid", "digest"),
    Index("instance_current", "series_instance_uid", "current"),
)

job = Table(
    "job",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(16), nullable=False),  # series, request, delivery
    Column("key", String, nullable=False, unique=True),  # equal keys are one job
    Column("lane", String, nullable=False),  # what may be held up together: a destination's name, else ""
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64), nullable=False),  # slug, of the last failure or of the end
    Column("detail", String, nullable=False),  # safe text
    Column("plan", JSON, nullable=False),
    Column("output", JSON, nullable=False),
    Column("study_instance_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False, index=True),
    Column("series_revision", Integer, nullable=False),
    Column("parent_id", String(36), index=True),  # a delivery's segmentation
    Column("predecessor_id", String(36)),  # the job of the series' earlier revision
    Column("stage", String(32), nullable=False),
    Column("percent", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("token", Integer, nullable=False),  # fencing: rises with each claim
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False, index=True),
    Column("finished_at", Double),
    Index("job_claim", "state", "priority", "not_before"),
)

step = Table(
    "step",
    metadata,
    Column("job_id", ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("output", JSON, nullable=False),
)

circuit = Table(
    "circuit",
    metadata,
    Column("destination", String, primary_key=True),
    Column("failures", Integer, nullable=False),  # in a row
    Column("open_until", Double, nullable=False),
)

# What retention rules have deleted: the proof. Keys and Patient ID are there only until the objects are gone.
deletion = Table(
    "deletion",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("rule", String(16), nullable=False),  # sources, results, failed
    Column("study_instance_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False, index=True),
    Column("patient_id", String(320), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sop_classes", JSON, nullable=False),  # SOP Class UID: count
    Column("digest", String(64), nullable=False),  # SHA-256 over the sorted digests of the instances
    Column("keys", JSON, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("begun_at", Double, nullable=False),
    Column("completed_at", Double, index=True),
)

commitment = Table(
    "commitment",
    metadata,
    Column("transaction_uid", String(64), primary_key=True),
    Column("job_id", String(36), nullable=False),
    Column("failed", Text),  # UIDs with backslashes between; null while there is no answer
)

# New beside the tables of schema 1, which they leave as they are: a database of that version gets them at the start.
series_trail = Table(
    "series_trail",
    metadata,
    Column(
        "series_instance_uid", ForeignKey("series.series_instance_uid", ondelete="CASCADE"), primary_key=True
    ),
    Column("request_id", String(36), nullable=False),
    Column("traceparent", String(64), nullable=False),
)  # fmt: skip

job_trail = Table(
    "job_trail",
    metadata,
    Column("job_id", ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("request_id", String(36), nullable=False),
    Column("traceparent", String(64), nullable=False),
)
