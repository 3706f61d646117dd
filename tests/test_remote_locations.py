"""Where an index can lie: what is a path, what is a location in object storage, and what is neither."""

from pathlib import Path

import pytest

from index import IndexDirectory
from index.errors import InvalidOptionError
from index.remote.location import Location, parse_location


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("my-index", "my-index"),
        ("a/b c", "a/b c"),
        ("file:///data/my%20index", "/data/my index"),
        ("file://localhost/data", "/data"),
        ("FILE:///data", "/data"),
        ("s3:bucket", "s3:bucket"),
    ],
)
def test_a_path_is_one(given: str, path: str) -> None:
    assert parse_location(given) == Path(path)
    assert IndexDirectory.of(given).path == Path(path)
    assert type(IndexDirectory.of(given)) is IndexDirectory


@pytest.mark.parametrize(
    ("given", "location", "name"),
    [
        ("s3://bucket/a/b", Location("s3", "bucket", "a/b"), "b"),
        ("s3://bucket/a/", Location("s3", "bucket", "a"), "a"),
        ("S3://bucket", Location("s3", "bucket", ""), "bucket"),
        ("gs://my.bucket/x-y_z", Location("gs", "my.bucket", "x-y_z"), "x-y_z"),
        ("az://container/index", Location("az", "container", "index"), "index"),
    ],
)
def test_a_location_is_one(given: str, location: Location, name: str) -> None:
    assert parse_location(given) == location
    assert location.name == name
    assert parse_location(str(location)) == location


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://host/x", r"an index can lie at a path or at file://, s3://, gs://, az://, not at ftp://"),
        ("http://host/x", "not at http://"),
        ("file://host/x", "names another machine"),
        ("file://", "names another machine or nothing"),
        ("s3://", "s3://bucket/prefix"),
        ("s3:///x", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "neither user nor port: keys and endpoints come from the environment"),
        ("s3://host:9000/x", "neither user nor port"),
        ("s3://bucket/x?region=a", "has a query or a fragment"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a/../b", "empty part, or one that is"),
    ],
)
def test_what_is_neither_is_told(given: str, said: str) -> None:
    with pytest.raises(InvalidOptionError, match=said):
        IndexDirectory.of(given)


def test_a_uri_that_became_a_path_is_told() -> None:
    with pytest.raises(InvalidOptionError, match="s3:/bucket/x was a URI before it became a Path"):
        IndexDirectory.of(Path("s3://bucket/x"))


def test_each_has_a_folder_of_its_own_in_a_cache() -> None:
    uris = [
        "s3://bucket/a",
        "gs://bucket/a",
        "s3://other/a",
        "s3://bucket/A",
        "s3://bucket/a/a",
        "s3://a",
        "s3://b/é/.x",
    ]
    keys = {Location.parse(uri).key for uri in uris}
    assert len({key.lower() for key in keys}) == len(uris)
    assert all(key.replace("-", "").replace("_", "").isalnum() and key.isascii() for key in keys)
