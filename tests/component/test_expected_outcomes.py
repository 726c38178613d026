"""Every folder and loose file of ../shared/dicom has a row in the table, and does what its row says."""

from __future__ import annotations

import pytest

from tests.conftest import shared
from tests.real_series import expected_outcomes, outcome, parts

pytestmark = pytest.mark.real
EXPECTED = expected_outcomes()


@pytest.mark.parametrize("path", EXPECTED, ids=[f"{path} -> {outcome}" for path, outcome in EXPECTED.items()])
def test_the_outcome_is_the_expected_one(path):
    assert outcome(shared(f"dicom/{path}")) == EXPECTED[path]


def test_no_folder_and_no_loose_file_is_without_a_row():
    assert sorted(parts(shared("dicom"))) == sorted(EXPECTED)
