"""The OpenAPI document: FastAPI's, corrected where the routes do themselves what FastAPI would otherwise do."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.index_responses import IndexResponse
from service.responses import ProblemResponse
from service.schemas import (
    BatchSearchRequest,
    CompactRequest,
    DeleteRequest,
    EncodeRequest,
    SearchRequest,
    SimilarRequest,
    UpsertRequest,
)

__all__ = ["describe"]

# Bodies that the routes read themselves, errors, and IndexResponse because FastAPI takes the nulls out of its example.
_MODELS = (
    SearchRequest,
    BatchSearchRequest,
    EncodeRequest,
    SimilarRequest,
    UpsertRequest,
    DeleteRequest,
    CompactRequest,
    ProblemResponse,
    IndexResponse,
)
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made on the first call."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema["components"]
        _, definitions = models_json_schema(
            [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
        )
        components["schemas"].update(definitions["$defs"])
        components["securitySchemes"] = _SECURITY
        # FastAPI declares its own form of 422 for every path with a parameter; no path of ours answers it.
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        for name, path in schema["paths"].items():
            for operation in path.values():
                _correct(name, operation)
        app.openapi_schema = schema
    return app.openapi_schema


def _correct(path: str, operation: dict[str, Any]) -> None:
    if "application/json" in operation["responses"].get("422", {}).get("content", {}):
        del operation["responses"]["422"]
    if path.startswith("/v1/"):
        # The empty one is for services without a key.
        operation["security"] = [{"bearer": []}, {"header": []}, {}]
