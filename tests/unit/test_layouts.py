"""Data sets as people have them: the cases that are there, with the right label values, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.layouts import CaseFiles, LayoutUnknown, find_cases, organ_named


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def msd(directory: Path, labels: dict[str, str], name: str = "x", modality: str = "CT") -> tuple[CaseFiles, ...]:
    entry = {"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}
    document = {"name": name, "modality": {"0": modality}, "labels": labels, "training": [entry]}
    (directory / "dataset.json").write_text(json.dumps(document))
    return find_cases(directory)


def test_msd_with_organ_and_tumour(tmp_path):
    (case,) = msd(tmp_path, {"0": "background", "1": "liver", "2": "cancer"})
    assert case.name == "case_1"
    assert case.image == tmp_path / "imagesTr" / "case_1.nii.gz"
    assert case.mask == tmp_path / "labelsTr" / "case_1.nii.gz"
    assert (case.tumour_labels, case.organ_labels, case.organ, case.modality) == ((2,), (1, 2), "liver", "CT")


def test_msd_with_the_tumour_alone_has_no_organ_mask(tmp_path):
    (case,) = msd(tmp_path, {"0": "background", "1": "colon cancer primaries"}, name="Colon")
    assert (case.tumour_labels, case.organ_labels, case.organ) == ((1,), (), "colon")


def test_a_vessel_is_no_organ(tmp_path):
    (case,) = msd(tmp_path, {"0": "background", "1": "Vessel", "2": "Tumour"}, name="HepaticVessel")
    assert (case.tumour_labels, case.organ_labels, case.organ) == ((2,), (), "liver")


def test_msd_without_a_tumour_label_is_refused(tmp_path):
    with pytest.raises(LayoutUnknown, match="tumour"):
        msd(tmp_path, {"0": "background", "1": "spleen"})


def test_kits_with_either_name_of_the_mask_and_incomplete_cases_left_out(tmp_path):
    touch(*(tmp_path / f"case_0000{n}" / "imaging.nii.gz" for n in (0, 1, 2)))
    touch(tmp_path / "case_00000" / "segmentation.nii.gz", tmp_path / "case_00001" / "aggregated_MAJ_seg.nii.gz")
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["case_00000", "case_00001"]
    assert all((case.tumour_labels, case.organ, case.modality) == ((2,), "kidney", "CT") for case in cases)


def test_lits_pairs_gzipped_or_not(tmp_path):
    touch(*(tmp_path / name for name in ("volume-0.nii", "segmentation-0.nii", "volume-7.nii.gz", "volume-8.nii")))
    touch(tmp_path / "segmentation-7.nii.gz")
    assert [case.name for case in find_cases(tmp_path)] == ["volume-0", "volume-7"]


def test_folders_with_dicom_or_nifti_and_an_index(tmp_path):
    touch(tmp_path / "a" / "image" / "0.dcm", tmp_path / "a" / "mask.nii.gz")
    touch(tmp_path / "b" / "image.nii.gz", tmp_path / "b" / "mask.nii.gz", tmp_path / "b" / "organ.nii.gz")
    touch(tmp_path / "c" / "image.nii.gz")
    (tmp_path / "index.json").write_text(json.dumps([{"case": "b", "modality": "MR", "organ": "liver metastasis"}]))
    a, b = find_cases(tmp_path)
    assert (a.image, a.modality, a.organ_mask, a.organ) == (tmp_path / "a" / "image", None, None, None)
    assert (b.image, b.modality, b.organ) == (tmp_path / "b" / "image.nii.gz", "MR", "liver")
    assert b.organ_mask == tmp_path / "b" / "organ.nii.gz"


def test_csv_paths_are_relative_to_the_file(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("case,image,mask,organ,modality,patient\none,i/1.nii,m/1.nii,lung,CT,p1\n,i/2.nii,m/2.nii,,,\n")
    one, two = find_cases(table)
    assert (one.name, one.image, one.organ, one.patient) == ("one", tmp_path / "i" / "1.nii", "lung", "p1")
    assert (two.name, two.organ, two.modality, two.patient) == ("case 2", None, None, None)


@pytest.mark.parametrize("text", ["image,label\n", ""])
def test_csv_without_its_columns_is_refused(tmp_path, text):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(LayoutUnknown, match="columns"):
        find_cases(tmp_path / "cases.csv")


def test_a_folder_in_no_layout_is_refused(tmp_path):
    with pytest.raises(LayoutUnknown):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("text", "organ"),
    [("soft-tissue sarcoma (extremity)", "soft tissue"), ("Kidney", "kidney"), ("spleen", None), ("", None)],
)
def test_an_organ_is_known_by_its_words(text, organ):
    assert organ_named(text) == organ
