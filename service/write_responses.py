"""Bodies of responses to writes, as OpenAPI shows them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.responses import ANSWER_EXAMPLE, Answer

__all__ = ["AcceptedResponse", "DeleteResponse", "UpsertResponse"]


class UpsertResponse(Answer):
    """What was written: documents, and how many of these took the place of one. Searches see it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"written": 1, "replaced": 0, **ANSWER_EXAMPLE}]})

    written: int
    replaced: int


class DeleteResponse(Answer):
    """How many documents were deleted, and how many ids no document had."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deleted": 1, "missing": 0, **ANSWER_EXAMPLE}]})

    deleted: int
    missing: int


class AcceptedResponse(BaseModel):
    """What has been asked for has begun."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "accepted"}]})

    status: Literal["accepted"]
