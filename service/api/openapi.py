"""The parts of the OpenAPI document that FastAPI cannot see: the streamed body, the binary answers, the problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.permissions import Open, needed
from service.api.problems import problem_responses
from service.api.pull import PullRequest
from service.errors import (
    AuthenticationUnavailable,
    ForeignHost,
    ForeignOrigin,
    RoleMissing,
    TagsError,
    TooManyRequests,
    Unauthenticated,
)
from service.preview import RESEARCH_USE
from service.prompt_document import PromptDocument
from service.results import FORMATS

SCHEMAS = "#/components/schemas/"
BINARY = {"type": "string", "format": "binary"}
EXAMPLES = {
    "a click": {"points": [{"lps_mm": [12.5, -40.0, 310.0]}], "text": "liver tumour", "target": "liver"},
    "a click on an image": {"points": [{"sop_instance_uid": "1.2.3.4", "pixel": [201, 144]}]},
    "a box in voxels": {"boxes": [{"index": [[180, 120, 30], [230, 170, 44]]}]},
    "text alone": {"text": "lung tumour"},
}
SEGMENT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": BINARY,
                            "description": "DICOM Part 10 files, or ZIP or TAR(.gz) archives of them",
                        },
                        "prompts": {"$ref": f"{SCHEMAS}PromptDocument"},
                        "organ_mask": BINARY | {"description": "anatomy as NIfTI or DICOM SEG"},
                        "mask": BINARY | {"description": "a previous mask as NIfTI or DICOM SEG"},
                        "series_instance_uid": {
                            "type": "string",
                            "description": "required when the upload holds more than one usable series",
                        },
                        "acquisition": {
                            "type": "object",
                            "additionalProperties": {"type": "number"},
                            "description": "which of several at the same places: one of the choices of mixed-series",
                            "example": {"EchoNumbers": 1},
                        },
                        "bundle": {
                            "type": "string",
                            "description": "name and version of a loaded bundle, as /capabilities lists them",
                        },
                        "format": {"type": "string", "enum": list(FORMATS), "default": "seg"},
                        "profile": {"type": "string", "description": "destination profile, see /capabilities"},
                    },
                },
                "encoding": {name: {"contentType": "application/json"} for name in ("prompts", "acquisition")},
            },
            "application/json": {"schema": {"$ref": f"{SCHEMAS}PullRequest"}},
        },
    }
}
FORMATS_BY_MEDIA_TYPE = {
    item.media_type: [name for name, other in FORMATS.items() if other.media_type == item.media_type]
    for item in FORMATS.values()
}
SEGMENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The result. {RESEARCH_USE}",
        "headers": {
            "Server-Timing": {"description": "milliseconds per stage", "schema": {"type": "string"}},
            "TAGS-Bundle": {"description": "name and version of the bundle", "schema": {"type": "string"}},
            "X-Request-ID": {"description": "stands in the log and in problems", "schema": {"type": "string"}},
        },
        "content": {
            media_type: {"schema": {"type": "object"} if "json" in names else BINARY, "x-format": ", ".join(names)}
            for media_type, names in FORMATS_BY_MEDIA_TYPE.items()
        },
    },
    202: {"description": "With `Prefer: respond-async`: the job, whose address is in Location"},
    **problem_responses(TagsError),
}
ANY_ROUTE = (ForeignOrigin, ForeignHost, TooManyRequests)
GUARDED_ROUTE = (*ANY_ROUTE, Unauthenticated, RoleMissing, AuthenticationUnavailable)
PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457. Nothing of the request is repeated.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "example": "/docs/errors#no-prompts"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "the request id"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"location": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def complete_openapi(app: FastAPI) -> None:
    """Give the app a document that holds the schemas which the parts above refer to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            prompts = PromptDocument.model_json_schema(ref_template=SCHEMAS + "{model}")
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas |= prompts.pop("$defs") | {"PromptDocument": prompts | {"examples": list(EXAMPLES.values())}}
            pull = PullRequest.model_json_schema(ref_template=SCHEMAS + "{model}")
            schemas |= pull.pop("$defs") | {"PullRequest": pull} | {"PromptDocument": schemas["PromptDocument"]}
            schemas["Problem"] = PROBLEM_SCHEMA
            _drop_validation_errors(schema)
            _add_access(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_access(schema: dict[str, Any]) -> None:
    """Who may use each operation, and how one is refused."""
    schema["components"]["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "a token of the configured OIDC issuer, or an API key",
        }
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            wanted = needed(method.upper(), path)
            refusals = ANY_ROUTE if wanted is Open.PUBLIC else GUARDED_ROUTE
            operation["responses"] = problem_responses(*refusals) | operation["responses"]
            operation["security"] = [] if wanted is Open.PUBLIC else [{"bearer": []}]
            if isinstance(wanted, frozenset):
                operation["x-roles"] = sorted(wanted)


def _drop_validation_errors(schema: dict[str, Any]) -> None:
    """FastAPI announces its own 422 for each route with parameters; here a bad one is a problem with status 400."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
