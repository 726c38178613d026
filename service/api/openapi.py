"""The parts of the OpenAPI document that FastAPI cannot see: the streamed body, the binary answers, the problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.problems import problem_responses
from service.errors import TagsError
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
                        "bundle": {
                            "type": "string",
                            "description": "name and version of a loaded bundle, as /capabilities lists them",
                        },
                        "format": {"type": "string", "enum": list(FORMATS), "default": "seg"},
                    },
                },
                "encoding": {"prompts": {"contentType": "application/json"}},
            }
        },
    }
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
            item.media_type: {"schema": {"type": "object"} if name == "json" else BINARY, "x-format": name}
            for name, item in FORMATS.items()
        },
    },
    **problem_responses(TagsError),
}
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
            schemas["Problem"] = PROBLEM_SCHEMA
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
