"""Rules: which series is segmented, and why not; a routing file that is wrong is refused with its place."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from service.cli import app
from service.rules.decision import Candidate, decide
from service.rules.document import Routing, RoutingInvalid, read_routing
from service.rules.reloading import ReloadingRouting
from tests.phantoms import CANARY, write_ct_series

CT = "1.2.840.10008.5.1.4.1.1.2"
PACS = {"pacs": {"stow": {"url": "http://127.0.0.1:1/dicom-web"}}}


def routing(*rules: dict, **more) -> Routing:
    prepared = [
        {"prompts": {"text": "tumour"}, "destinations": ["pacs"], "name": f"r{n}"} | r for n, r in enumerate(rules)
    ]
    return Routing.model_validate({"destinations": PACS, "rules": prepared} | more)


def series(instances: int = 40, **keywords: str) -> Candidate:
    header = {"SOPClassUID": CT, "Modality": "CT", "SliceThickness": "3.0", "BodyPartExamined": "ABDOMEN"} | keywords
    return Candidate(
        {name: tuple(value.split("\\")) for name, value in header.items()}, instances, "stow", "PACS", "TAGS"
    )


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        ({"Modality": "CT"}, True),
        ({"Modality": "ct"}, True),
        ({"Modality": ["MR", "CT"]}, True),
        ({"Modality": "MR"}, False),
        ({"BodyPartExamined": {"matches": "abd|liver"}}, True),
        ({"BodyPartExamined": {"matches": "^liver"}}, False),
        ({"SliceThickness": {"at_most": 3}}, True),
        ({"SliceThickness": {"at_most": 2.9}}, False),
        ({"SliceThickness": {"at_least": 1, "at_most": 5}}, True),
        ({"instances": {"at_least": 41}}, False),
        ({"calling_ae": "PACS", "via": "stow"}, True),
        ({"calling_ae": "OTHER"}, False),
        ({"ContrastBolusAgent": {"absent": True}}, True),
        ({"Modality": {"absent": True}}, False),
        ({"KVP": {"at_least": 1}}, False),
    ],
)
def test_a_rule_matches_when_every_condition_holds(match, matches):
    decision = decide(series(), routing({"match": match}))
    assert (decision.rule is not None) is matches
    assert decision.reason == ("" if matches else "no-rule")


def test_the_first_rule_that_matches_decides_and_the_others_say_why_not():
    rules = routing({"match": {"Modality": "MR"}}, {"match": {"Modality": "CT"}}, {"match": {}})
    decision = decide(series(), rules)
    assert decision.rule is rules.rules[1]
    assert decision.why == ("rule r0: Modality is not MR", "rule r1: matches")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"Manufacturer": "TAGS"}, "own-result"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary-capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary-capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "annotation"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT"}, "not-an-image"),
        ({"ImageType": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localizer"),
        ({"QualityControlImage": "YES"}, "quality-control"),
        ({"PatientName": "ACR^PHANTOM"}, "quality-control"),
        ({"StudyDescription": "Daily_QA"}, "quality-control"),
        ({"StudyDescription": "Aquarium"}, ""),
    ],
)
def test_some_series_are_never_segmented_whatever_the_rules_say(header, reason):
    assert decide(series(**header), routing({"match": {}})).reason == reason


def test_a_result_of_ours_is_known_by_the_ledger_too():
    candidate = Candidate({"SOPClassUID": (CT,)}, 1, own_result=True)
    assert decide(candidate, routing({"match": {}})).reason == "own-result"


@pytest.mark.parametrize(("choose", "chosen"), [("thinnest", "thin"), ("most-images", "many"), ("each", "both")])
def test_a_rule_may_choose_among_a_studys_series(choose, chosen):
    thin, many = series(20, SliceThickness="1"), series(80, SliceThickness="5")
    rules = routing({"match": {"Modality": "CT"}, "choose": choose})
    taken = {
        name
        for name, candidate, other in (("thin", thin, many), ("many", many, thin))
        if decide(candidate, rules, others=[other]).rule
    }
    assert taken == ({"thin", "many"} if chosen == "both" else {chosen})


def test_why_names_no_value_of_the_header():
    decision = decide(series(PatientName=CANARY), routing({"match": {"PatientName": {"matches": "x^"}}}))
    assert "CANARY" not in str(decision.why)


WRONG = {
    "no destination": {"rules": [{"name": "a", "match": {}, "prompts": {"text": "t"}, "destinations": ["nowhere"]}]},
    "unknown field": {"rulez": []},
    "unknown keyword": {
        "destinations": PACS,
        "rules": [{"name": "a", "match": {"Modalty": "CT"}, "prompts": {"text": "t"}, "destinations": ["pacs"]}],
    },
    "bad regular expression": {
        "destinations": PACS,
        "rules": [
            {"name": "a", "match": {"Modality": {"matches": "("}}, "prompts": {"text": "t"}, "destinations": ["pacs"]}
        ],
    },
    "nothing to look for": {
        "destinations": PACS,
        "rules": [{"name": "a", "match": {}, "prompts": {"target": "liver"}, "destinations": ["pacs"]}],
    },
    "an output that is no DICOM": {
        "destinations": PACS,
        "rules": [{"name": "a", "match": {}, "prompts": {"text": "t"}, "outputs": ["nifti"], "destinations": ["pacs"]}],
    },
    "a profile that is not there": {"destinations": {"pacs": PACS["pacs"] | {"profile": "secret"}}},
    "two ways to one destination": {
        "destinations": {"pacs": PACS["pacs"] | {"dimse": {"host": "h", "port": 1, "ae_title": "A"}}}
    },
    "a password in the file": {"destinations": {"pacs": {"stow": {"url": "http://user:secret@pacs/dicom-web"}}}},
    "a file of another kind": {"sources": {"pacs": {"url": "file:///etc"}}},
}


@pytest.mark.parametrize("document", WRONG.values(), ids=WRONG)
def test_a_wrong_routing_file_is_refused_without_its_values(tmp_path, document):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(RoutingInvalid) as caught:
        read_routing(tmp_path / "r.yaml")
    assert str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_refused_with_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("rules: [\n  {")
    with pytest.raises(RoutingInvalid, match="line"):
        read_routing(tmp_path / "r.yaml")


def test_a_valid_change_is_used_at_once_and_an_invalid_one_is_not(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("completeness: {quiet_s: 1}")
    watched = ReloadingRouting(file)
    file.write_text("completeness: {quiet_s: 22}")
    assert (watched.current.completeness.quiet_s, watched.refused) == (22, False)
    file.write_text("completeness: {quiet_s: never}")
    assert (watched.current.completeness.quiet_s, watched.refused) == (22, True)
    file.write_text("completeness: {quiet_s: 333}")
    assert (watched.current.completeness.quiet_s, watched.refused) == (333, False)


def test_the_command_shows_what_would_happen_and_no_name(tmp_path):
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {
                "destinations": PACS,
                "rules": [
                    {
                        "name": "abdomen",
                        "match": {"BodyPartExamined": "ABDOMEN", "instances": {"at_least": 4}},
                        "prompts": {"text": "tumour"},
                        "destinations": ["pacs"],
                        "deidentified": True,
                    }
                ],
            }
        )
    )
    write_ct_series(tmp_path / "dicom" / "a", shape_zyx=(4, 12, 10), series="a")
    write_ct_series(tmp_path / "dicom" / "b", shape_zyx=(3, 12, 10), series="b")
    result = CliRunner(env={"COLUMNS": "240"}).invoke(
        app, ["rules", "test", str(tmp_path / "r.yaml"), str(tmp_path / "dicom")]
    )
    assert result.exit_code == 0, result.output
    assert "abdomen: the profile's objects without the patient to pacs, routine" in result.output
    assert "refused: no-rule" in result.output
    assert "instances is not at least 4" in result.output
    assert "CANARY" not in result.output
