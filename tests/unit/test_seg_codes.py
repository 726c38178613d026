"""What was asked for decides the codes of the segment, never one default for everything."""

from __future__ import annotations

import pytest

from service.dicom.codes import segment_codes

LIVER, KIDNEY, LUNG, BRAIN, LYMPH_NODE = "10200004", "64033007", "39607008", "12738006", "59441001"
NEOPLASM, CYST, LESION, MASS, SECONDARY = "108369006", "367643001", "52988006", "4147007", "14799000"


@pytest.mark.parametrize(
    ("text", "target", "body_part", "kind", "region"),
    [
        ("liver tumour", None, "", NEOPLASM, LIVER),
        (None, "liver", "", NEOPLASM, LIVER),
        ("Hepatic lesion", None, "CHEST", LESION, LIVER),
        ("cyst", "kidney", "ABDOMEN", CYST, KIDNEY),
        ("a MASS of the left kidney", None, "", MASS, KIDNEY),
        ("metastasis of colon cancer", "liver", "", SECONDARY, LIVER),
        ("brain metastases", None, "", SECONDARY, BRAIN),
        ("enlarged lymph node", None, "NECK", NEOPLASM, LYMPH_NODE),
        ("pulmonary nodule", None, "", "27925004", LUNG),
        (None, None, "BRAIN", NEOPLASM, BRAIN),
        (None, None, "", NEOPLASM, None),
        ("something there", None, "WRIST", NEOPLASM, None),
        ("sliver", None, "", NEOPLASM, None),  # whole words only
        ("adrenal tumour", None, "", NEOPLASM, "23451007"),  # not renal
    ],
)
def test_codes_follow_the_words(text, target, body_part, kind, region):
    codes = segment_codes(text=text, target=target, body_part=body_part)
    assert codes.category.value == "49755003"  # morphologically abnormal structure
    assert codes.type.value == kind
    assert (codes.region.value if codes.region else None) == region
