"""What the ledger notes of a file: nothing that a database would refuse, and that alone is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import Dataset

from service.dicom.facts import MAX_VALUE_CHARACTERS, TAGS, read_facts
from tests.phantoms import write_ct_series


def attributes(directory: Path, **values: object) -> dict[str, dict]:
    def change(dataset: Dataset, index: int) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    facts = read_facts(write_ct_series(directory, shape_zyx=(1, 12, 10), change=change).paths[0])
    return json.loads(facts.series_json) | json.loads(facts.instance_json)


@pytest.mark.parametrize(
    "values",
    [{"ImageType": ["DERIVED"] * 1000}, {"ContentDescription": "a\0b"}],
    ids=["too long", "NUL"],
)
def test_an_attribute_that_a_database_would_refuse_is_left_out_and_the_others_stay(tmp_path, values):
    (name,) = values
    plain, kept = attributes(tmp_path / "plain"), attributes(tmp_path / "changed", **values)
    assert kept == {tag: value for tag, value in plain.items() if tag != TAGS[name]}


def test_attributes_that_are_long_together_all_stay(tmp_path):
    values = {"ContentDescription": "d" * (MAX_VALUE_CHARACTERS - 200), "ImageType": ["ORIGINAL", "PRIMARY", "x" * 600]}
    kept = attributes(tmp_path, **values)
    assert {TAGS[name] for name in values} <= kept.keys()
