"""Every error that the library raises on purpose, with the stable code that the service and the CLI show.

    GaussearchError
    ├── InvalidInputError            what the caller passed cannot be used
    │   ├── InvalidGaussiansError    shape, finiteness, sign or width of means and variances
    │   ├── InvalidOptionError       an option outside its limits
    │   └── DocumentNotFoundError    an id that the index does not hold
    ├── SourceError                  a corpus file, row, column or value that cannot be read
    │   └── DuplicateIdError         two documents with one id
    ├── BuildError                   the build cannot start, go on or resume
    ├── BackupError                  a backup that cannot be made, or is none
    ├── ModelError                   a model of texts that cannot be used
    │   └── ModelMismatchError       another model than the one whose Gaussians an index holds
    ├── SearchStoppedError           a search that its caller has given up
    ├── IndexDirectoryError          the directory of an index
    │   ├── IndexNotFoundError       nothing has been published there
    │   ├── CorruptIndexError        a file that does not match its checksum, size or neighbour
    │   ├── UnsupportedFormatError   a format version that this release does not read
    │   ├── GenerationNotFoundError  a generation that is not kept
    │   ├── NotSyncedError           a change that has been made, and that a power cut may undo
    │   ├── IndexLockedError         another process is writing
    │   └── PublicationConflictError another machine has published meanwhile
    ├── StorageError                 object storage that does not do what it is asked
    │   ├── StorageDeniedError       credentials that are missing, wrong or expired, or may not do this
    │   └── StorageUnreachableError  no answer, or none that is whole, however often it was asked
    └── ResourceError                the machine cannot do it
        ├── ClusterError             no cluster of Ray, or one that cannot do the work
        ├── DeviceUnavailableError   the device asked for is not there
        ├── InsufficientMemoryError  the index does not fit
        └── InsufficientCacheError   what is needed of an index in storage does not fit into the cache

Messages name the file, row, field or limit concerned and say what to do about it.
"""

from typing import ClassVar

__all__ = [
    "BackupError",
    "BuildError",
    "ClusterError",
    "CorruptIndexError",
    "DeviceUnavailableError",
    "DocumentNotFoundError",
    "DuplicateIdError",
    "GaussearchError",
    "GenerationNotFoundError",
    "IndexDirectoryError",
    "IndexLockedError",
    "IndexNotFoundError",
    "InsufficientCacheError",
    "InsufficientMemoryError",
    "InvalidGaussiansError",
    "InvalidInputError",
    "InvalidOptionError",
    "ModelError",
    "ModelMismatchError",
    "NotSyncedError",
    "PublicationConflictError",
    "ResourceError",
    "SearchStoppedError",
    "SourceError",
    "StorageDeniedError",
    "StorageError",
    "StorageUnreachableError",
    "UnsupportedFormatError",
]


class GaussearchError(Exception):
    """Base of every error raised on purpose. `code` is stable across releases; messages are not."""

    code: ClassVar[str] = "internal_error"


class InvalidInputError(GaussearchError):
    """What the caller passed cannot be used."""

    code = "invalid_input"


class InvalidGaussiansError(InvalidInputError):
    """Means and variances that are not a batch of diagonal Gaussians.

    `row` and `component` are 0-based and None where the defect has no single place (a wrong shape, say).
    """

    code = "invalid_gaussian"

    def __init__(self, message: str, *, row: int | None = None, component: int | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.component = component


class InvalidOptionError(InvalidInputError):
    """An option outside its limits."""

    code = "invalid_option"


class DocumentNotFoundError(InvalidInputError):
    """An id that the index does not hold."""

    code = "document_not_found"


class SourceError(GaussearchError):
    """A corpus file, row, column or value that cannot be read."""

    code = "bad_source"


class DuplicateIdError(SourceError):
    """Two documents with one id."""

    code = "duplicate_id"


class BuildError(GaussearchError):
    """The build cannot start, go on or resume."""

    code = "build_failed"


class BackupError(GaussearchError):
    """A backup that cannot be made where it is asked for, or that is none."""

    code = "backup_failed"


class ModelError(GaussearchError):
    """A model of texts that is not there, or cannot be used."""

    code = "bad_model"


class ModelMismatchError(ModelError):
    """Another model than the one whose Gaussians an index holds."""

    code = "model_mismatch"


class SearchStoppedError(GaussearchError):
    """A search that its caller has given up."""

    code = "search_stopped"


class IndexDirectoryError(GaussearchError):
    """Something is wrong with the directory of an index."""

    code = "bad_index"


class IndexNotFoundError(IndexDirectoryError):
    """No index has been published in the directory."""

    code = "index_not_found"


class CorruptIndexError(IndexDirectoryError):
    """A file of the index that does not match its checksum, size or neighbour."""

    code = "index_corrupt"


class UnsupportedFormatError(IndexDirectoryError):
    """A format version that this release does not read."""

    code = "index_format_unsupported"


class GenerationNotFoundError(IndexDirectoryError):
    """A generation that is not kept."""

    code = "generation_not_found"


class NotSyncedError(IndexDirectoryError):
    """A change that has been made, and that a power cut may undo."""

    code = "not_synced"


class IndexLockedError(IndexDirectoryError):
    """Another process is writing to the index."""

    code = "index_locked"


class PublicationConflictError(IndexDirectoryError):
    """Another machine has published a generation meanwhile."""

    code = "publication_conflict"


class StorageError(GaussearchError):
    """Object storage does not do what it is asked."""

    code = "storage_failed"


class StorageDeniedError(StorageError):
    """Credentials for object storage that are missing, wrong or expired, or may not do this."""

    code = "storage_denied"


class StorageUnreachableError(StorageError):
    """Object storage does not answer, or not with all of its answer."""

    code = "storage_unreachable"


class ResourceError(GaussearchError):
    """The machine cannot do what was asked."""

    code = "resource_unavailable"


class ClusterError(ResourceError):
    """A cluster of Ray that is not there, or cannot do the work."""

    code = "cluster_unavailable"


class DeviceUnavailableError(ResourceError):
    """The device asked for is not there."""

    code = "device_unavailable"


class InsufficientMemoryError(ResourceError):
    """The index does not fit into memory."""

    code = "insufficient_memory"


class InsufficientCacheError(ResourceError):
    """What is needed of an index in object storage does not fit into the cache."""

    code = "insufficient_cache"
