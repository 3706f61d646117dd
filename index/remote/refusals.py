"""What object storage says when it does not do what it is asked, as errors that say what to do."""

import re
from typing import Final

from index.errors import StorageDeniedError, StorageError, StorageUnreachableError

__all__ = ["failure", "said_of", "status_of"]

_CODE, _MESSAGE = re.compile(r"<Code>([^<]{1,100})</Code>"), re.compile(r"<Message>([^<]{1,300})</Message>")
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED = (
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
"""Codes of S3; other storage says so by its status alone."""
UNAUTHORIZED: Final = (401, 403)
PASSING: Final = (408, 429, 500, 502, 503, 504)
"""Statuses that may be others the next time."""
LONGEST_SAID: Final = 300
"""Letters of a message that are worth reading, at most."""


def failure(where: str, what: str, error: Exception) -> StorageError:
    """The error that says of an object that it cannot be read, written or removed, and what to do about it."""
    said, status = said_of(error), status_of(error)
    if status in UNAUTHORIZED or any(code in said for code in _DENIED):
        return StorageDeniedError(
            f"{where} cannot be {what}: storage says {said}: see to the credentials in the environment "
            "(AWS_ACCESS_KEY_ID and the like), whether they have expired, and what they may do"
        )
    if status is None or status in PASSING:
        return StorageUnreachableError(
            f"{where} cannot be {what}, after several tries: {said}: see whether storage can be reached from here "
            "(AWS_ENDPOINT_URL, AWS_REGION and the like), and try again"
        )
    return StorageError(f"{where} cannot be {what}: storage says {said}")


def status_of(error: Exception) -> int | None:
    """The status of an answer that an error is of; None where there was no answer."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def said_of(error: Exception) -> str:
    """What of an error is worth reading: what the storage said, or else its first line."""
    text = str(error)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        return f"{code[1]}: {message[1]}" if message is not None else code[1]
    first = text.partition("\n")[0]
    return first if len(first) <= LONGEST_SAID else f"{first[:LONGEST_SAID]}…"
