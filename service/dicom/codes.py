"""What was asked for -> coded concepts of the segment: category, type, anatomic region (SNOMED CT).

The words of the prompt decide: `target` first, then `text`, then the series' BodyPartExamined. Words that mean
nothing here give a neoplasm without an anatomic region: nothing is claimed that nobody said. See
docs/decisions/0003-segmentation-object.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

CATEGORY: Code = codes.SCT.MorphologicallyAbnormalStructure  # CID 7150

# First match wins, so the special stands before the general. CID 7159.
TYPES: tuple[tuple[tuple[str, ...], Code], ...] = (
    (("metastasis", "metastases", "metastatic", "secondary"), codes.SCT.NeoplasmSecondary),
    (("cyst", "cysts"), codes.SCT.Cyst),
    (("nodule", "nodules"), codes.SCT.Nodule),
    (("tumour", "tumor", "tumours", "tumors", "cancer", "carcinoma", "sarcoma", "glioma", "adenoma", "lymphoma",
      "neoplasm", "malignancy"), codes.SCT.Neoplasm),
    (("mass", "masses"), codes.SCT.Mass),
    (("lesion", "lesions"), codes.SCT.Lesion),
)  # fmt: skip

REGIONS: tuple[tuple[tuple[str, ...], Code], ...] = (
    (("lymph node", "lymph nodes", "nodal"), codes.SCT.LymphNode),
    (("soft tissue", "muscle"), codes.SCT.SoftTissue),
    (("adrenal",), codes.SCT.AdrenalGland),
    (("liver", "hepatic", "hepatocellular"), codes.SCT.Liver),
    (("kidney", "kidneys", "renal"), codes.SCT.Kidney),
    (("pancreas", "pancreatic"), codes.SCT.Pancreas),
    (("rectum", "rectal"), codes.SCT.Rectum),
    (("colon", "colonic", "colorectal"), codes.SCT.Colon),
    (("lung", "lungs", "pulmonary"), codes.SCT.Lung),
    (("brain", "cerebral", "glioma", "glioblastoma"), codes.SCT.Brain),
    (("breast", "mammary"), codes.SCT.Breast),
    (("prostate", "prostatic"), codes.SCT.Prostate),
    (("spleen", "splenic"), codes.SCT.Spleen),
    (("stomach", "gastric"), codes.SCT.Stomach),
    (("bladder",), codes.SCT.Bladder),
    (("gallbladder",), codes.SCT.Gallbladder),
    (("esophagus", "oesophagus", "esophageal", "oesophageal"), codes.SCT.Esophagus),
    (("uterus", "uterine", "endometrial"), codes.SCT.Uterus),
    (("cervix",), codes.SCT.Cervix),
    (("ovary", "ovarian"), codes.SCT.Ovary),
    (("thyroid",), codes.SCT.Thyroid),
    (("spine", "vertebra", "vertebral", "tspine", "lspine"), codes.SCT.Spine),
    (("bone", "osseous", "skeleton", "femur", "rib"), codes.SCT.Bone),
    (("head",), codes.SCT.Head),
    (("neck",), codes.SCT.Neck),
    (("chest", "thorax", "thoracic"), codes.SCT.Chest),
    (("abdomen", "abdominal"), codes.SCT.Abdomen),
    (("pelvis", "pelvic"), codes.SCT.Pelvis),
    (("thigh",), codes.SCT.Thigh),
    (("leg", "lower limb"), codes.SCT.LowerLimb),
    (("arm", "upper limb"), codes.SCT.UpperLimb),
    (("extremity",), codes.SCT.Extremity),
)  # fmt: skip


@dataclass(frozen=True)
class SegmentCodes:
    """What a segment shows. `region` is None when nothing says where it lies."""

    category: Code
    type: Code
    region: Code | None


def segment_codes(*, text: str | None, target: str | None, body_part: str) -> SegmentCodes:
    """Args: body_part: BodyPartExamined of the series, any case; empty when absent."""
    said = [words for words in (target, text) if words]
    kind = next((code for words in reversed(said) if (code := _find(words, TYPES))), codes.SCT.Neoplasm)
    region = next((code for words in (*said, body_part) if (code := _find(words, REGIONS))), None)
    return SegmentCodes(CATEGORY, kind, region)


def _find(words: str, table: tuple[tuple[tuple[str, ...], Code], ...]) -> Code | None:
    """The first concept of which a whole word (or two) stands in `words`."""
    spaced = f" {' '.join(re.findall(r'[a-z]+', words.lower()))} "
    return next((code for terms, code in table if any(f" {term} " in spaced for term in terms)), None)
