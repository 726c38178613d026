"""The routing file (YAML): sources, destinations, when a series is complete, and the rules, checked strictly.

    completeness: {quiet_s: 15}
    destinations:
      pacs: {stow: {url: "http://pacs:8042/dicom-web", username: tags, password_env: PACS_PASSWORD}}
    rules:
      - name: liver
        match: {Modality: CT, BodyPartExamined: {matches: "abdomen|liver"}, SliceThickness: {at_most: 5}}
        prompts: {text: liver tumour, target: liver}
        destinations: [pacs]

Passwords stay in the environment: `password_env` names the variable. A refusal says where and what, without values.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from service.dicom.acquisition import Acquisition
from service.dicom.keywords import is_keyword
from service.dicom.profiles import profile_named
from service.errors import UnknownProfile
from service.prompt_document import MAX_TARGET_CHARACTERS, MAX_TEXT_CHARACTERS
from service.results import FORMATS
from service.tls import client_context

DICOM = "application/dicom"
OWN_NAMES = ("via", "calling_ae", "called_ae", "instances")  # what a rule may match beside header keywords
AE_TITLE = r"^[ !-\[\]-~]{1,16}$"


class RoutingInvalid(ValueError):
    """The routing file cannot be used; the text says where, line by line."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _pattern(value: object) -> object:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error.msg}") from error
    return value


Pattern = Annotated[str, BeforeValidator(_pattern)]


class Test(_Strict):
    """A condition on one attribute. Text is compared without regard to case."""

    equals: tuple[str, ...] = Field(default=(), description="any of these")
    matches: Pattern | None = Field(default=None, description="a regular expression found in any of its values")
    at_least: float | None = None
    at_most: float | None = None
    absent: bool = Field(default=False, description="the attribute must not be there")

    @model_validator(mode="after")
    def _says_something(self) -> Test:
        if not (self.equals or self.matches or self.absent or self.at_least is not None or self.at_most is not None):
            raise ValueError("give equals, matches, at_least, at_most or absent")
        return self


def _test(value: object) -> object:
    """`Modality: CT` and `Modality: [CT, MR]` are short for `equals`."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return {"equals": (str(value),)}
    if isinstance(value, list):
        return {"equals": tuple(str(item) for item in value)}
    return value


class RulePrompts(_Strict):
    """What to look for. `annotation` takes the prompt from an object of the same study that refers to the series."""

    text: str | None = Field(default=None, max_length=MAX_TEXT_CHARACTERS)
    target: str | None = Field(default=None, max_length=MAX_TARGET_CHARACTERS)
    annotation: tuple[Literal["SEG", "SR", "PR"], ...] = Field(
        default=(), description="SEG: previous mask; SR, PR: the marked places as points"
    )
    organ_mask: bool = Field(
        default=False, description="take a SEG of the series as the organ mask, where there is one"
    )

    @model_validator(mode="after")
    def _enough(self) -> RulePrompts:
        if not self.text and not self.annotation:
            raise ValueError("give a text or an annotation: something must say what to look for")
        if self.organ_mask and "SEG" in self.annotation:
            raise ValueError("a SEG is either the annotation or the organ mask")
        return self


class Rule(_Strict):
    """One line of the table: the first that matches decides."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    match: dict[str, Annotated[Test, BeforeValidator(_test)]]
    choose: Literal["each", "most-images", "thinnest"] = "each"
    prompts: RulePrompts
    acquisition: Acquisition = Field(
        default={}, description="of a series that holds several: the numbers of the one to segment"
    )
    bundle: str | None = Field(default=None, description="name, version or both of a loaded bundle; the default else")
    outputs: tuple[str, ...] | None = Field(
        default=None, description="DICOM objects instead of those that the profile sends"
    )
    destinations: tuple[str, ...] = Field(min_length=1)
    profile: str = Field(default="", description="destination profile instead of the destinations' own")
    priority: Literal["interactive", "urgent", "routine"] = "routine"
    deidentified: bool = Field(
        default=False, description="results without the patient, by pseudonyms; needs TAGS_DEIDENTIFICATION_KEY"
    )

    @model_validator(mode="after")
    def _known(self) -> Rule:
        unknown = [name for name in self.match if name not in OWN_NAMES and not is_keyword(name)]
        if unknown:
            raise ValueError(
                f"match has {len(unknown)} names that are neither DICOM keywords nor {', '.join(OWN_NAMES)}"
            )
        offered = [name for name, item in FORMATS.items() if item.media_type == DICOM]
        if self.outputs is not None and (not self.outputs or not set(self.outputs) <= set(offered)):
            raise ValueError(f"outputs are DICOM objects: {', '.join(offered)}")
        return self


class Trust(_Strict):
    """How a peer is recognised over TLS, and how it recognises us."""

    ca_file: Path | None = Field(default=None, description="trust these certificates instead of the system's")
    certificate_file: Path | None = Field(default=None, description="shown to a peer that asks for one (mTLS)")
    key_file: Path | None = Field(default=None, description="its key, unless it is in the same file")

    def context(self) -> ssl.SSLContext:
        """Raises: TlsInvalid."""
        return client_context(ca_file=self.ca_file, certificate_file=self.certificate_file, key_file=self.key_file)


class DicomwebPeer(Trust):
    """A DICOMweb server."""

    url: str = Field(pattern=r"^https?://[^\s@]+$", description="up to and without /studies")
    username: str = ""
    password_env: str = ""
    token_env: str = Field(default="", description="a bearer token instead")
    timeout_s: float = Field(default=60.0, gt=0)

    def password(self) -> SecretStr:
        return SecretStr(os.environ.get(self.password_env, "") if self.password_env else "")

    def token(self) -> SecretStr:
        return SecretStr(os.environ.get(self.token_env, "") if self.token_env else "")


class DimsePeer(_Strict):
    """A DICOM node that takes C-STORE."""

    host: str
    port: int = Field(ge=1, le=65535)
    ae_title: str = Field(pattern=AE_TITLE)
    tls: Trust | None = Field(default=None, description="speak TLS to it; `{}` for the system's authorities")
    timeout_s: float = Field(default=30.0, gt=0)


class Destination(_Strict):
    """Where results go: exactly one way of sending, and one way of asking whether they are there."""

    stow: DicomwebPeer | None = None
    dimse: DimsePeer | None = None
    verify: Literal["qido", "commitment", "none"] | None = Field(
        default=None, description="by default qido for stow, commitment for dimse"
    )
    qido: DicomwebPeer | None = Field(default=None, description="where to ask, when it is not the STOW server")
    profile: str = Field(default="", description="how it wants its objects: a destination profile; `default` else")

    @model_validator(mode="after")
    def _one_way(self) -> Destination:
        if (self.stow is None) == (self.dimse is None):
            raise ValueError("give exactly one of stow or dimse")
        if self.how_to_verify == "qido" and not (self.stow or self.qido):
            raise ValueError("verify: qido needs a qido server")
        if self.how_to_verify == "commitment" and not self.dimse:
            raise ValueError("verify: commitment needs dimse")
        return self

    @property
    def host(self) -> str:
        """Where it is."""
        return self.dimse.host if self.dimse else urlsplit(self.stow.url if self.stow else "").hostname or ""

    @property
    def how_to_verify(self) -> Literal["qido", "commitment", "none"]:
        return self.verify or ("qido" if self.stow or self.qido else "commitment")


class Completeness(_Strict):
    """When a series counts as complete, unless its headers or its sender say so earlier."""

    quiet_s: float = Field(default=15.0, ge=0)


class Exclusions(_Strict):
    """What no rule may segment, beside results of ours, secondary captures and objects that are no images."""

    quality_control: Pattern = r"\b(phantom|qa|qc|quality control)\b"


class Routing(_Strict):
    """The whole file. Without one, series are received and answered for, and nothing is segmented."""

    completeness: Completeness = Completeness()
    exclusions: Exclusions = Exclusions()
    sources: dict[str, DicomwebPeer] = {}
    destinations: dict[str, Destination] = {}
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Routing:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        for rule in self.rules:
            if not set(rule.destinations) <= self.destinations.keys():
                raise ValueError(f"rule {rule.name} names a destination that is not listed")
        return self


def read_routing(path: Path | None, profiles_dir: Path | None = None) -> Routing:
    """Args: profiles_dir: the site's own destination profiles, which the file may name. Raises: RoutingInvalid."""
    if path is None:
        return Routing()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RoutingInvalid(f"the routing file cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise RoutingInvalid(f"the routing file is no YAML{f', line {mark.line + 1}' if mark else ''}") from error
    try:
        routing = Routing.model_validate(document or {})
    except ValidationError as error:
        places = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)]
        raise RoutingInvalid("\n".join(places)) from error
    _check_profiles(routing, profiles_dir)
    return routing


def _check_profiles(routing: Routing, profiles_dir: Path | None) -> None:
    named = {f"destinations.{name}": item.profile for name, item in routing.destinations.items()}
    named |= {f"rules.{number}": rule.profile for number, rule in enumerate(routing.rules)}
    for place, name in named.items():
        try:
            profile_named(name, profiles_dir)
        except UnknownProfile as error:
            raise RoutingInvalid(f"{place}.profile: {error.detail}") from error
