"""Where keys come from, which are refused at the start, and what an admin key is needed for."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.app import create_app
from service.keys import LEAST_BYTES, Keys, KeysError
from service.options import option_name
from service.requests import require_admin
from service.settings import ServiceSettings
from tests.serving import Client, Served, wait_until

SEARCH_KEY, OTHER_SEARCH_KEY = "search-" + "s" * 20, "search-" + "t" * 20
ADMIN_KEY, OTHER_ADMIN_KEY = "admin-" + "a" * 20, "admin-" + "b" * 20


def load(**settings: Any) -> Keys:
    return Keys.load(ServiceSettings(index=Path("nowhere"), **settings))


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def test_keys_are_those_of_the_settings_and_of_the_files(tmp_path: Path) -> None:
    keys = load(
        api_key=f"short, {SEARCH_KEY}",
        api_key_file=write(tmp_path / "search", OTHER_SEARCH_KEY, SEARCH_KEY),
        admin_key=ADMIN_KEY,
        admin_key_file=write(tmp_path / "admin", OTHER_ADMIN_KEY),
    )
    assert keys.search == (b"short", SEARCH_KEY.encode(), OTHER_SEARCH_KEY.encode())
    assert keys.admin == (ADMIN_KEY.encode(), OTHER_ADMIN_KEY.encode())
    assert keys.short == 1
    assert load() == Keys((), ())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_has_a_key_a_line_and_room_for_notes(tmp_path: Path, end: str, mark: str) -> None:
    unicode = "Schlüssel, und #zwar einer"
    path = write(tmp_path / "keys", f"{mark}{SEARCH_KEY}", "", "  ", "# old: removed", f"\t{unicode} ", end=end)
    assert load(api_key_file=path).search == (SEARCH_KEY.encode(), unicode.encode())


@pytest.mark.parametrize("setting", ["api_key_file", "admin_key_file"])
@pytest.mark.parametrize("lines", [[], [""], ["# nothing", "  # to see"]])
def test_a_file_without_a_key_is_refused(tmp_path: Path, setting: str, lines: list[str]) -> None:
    path = write(tmp_path / "keys", *lines)
    with pytest.raises(KeysError, match=f"{option_name(setting)}: {path} holds no key"):
        load(**{setting: path})


@pytest.mark.parametrize("setting", ["api_key_file", "admin_key_file"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, setting: str) -> None:
    for path, said in ((tmp_path / "nothing", "does not exist"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(KeysError) as refused:
            load(**{setting: path})
        assert str(refused.value) == f"{option_name(setting)}: {path} {said}"


def test_a_short_key_is_taken_as_a_search_key_of_the_settings_and_nowhere_else(tmp_path: Path) -> None:
    long, short = "k" * LEAST_BYTES, "k" * (LEAST_BYTES - 1)
    assert load(api_key=short).short == 1
    assert load(api_key_file=write(tmp_path / "long", long), admin_key="a" * LEAST_BYTES).short == 0
    path = write(tmp_path / "short", SEARCH_KEY, short)
    for settings in ({"api_key_file": path}, {"admin_key": f"{ADMIN_KEY},{short}"}, {"admin_key_file": path}):
        with pytest.raises(KeysError, match=r"1 of 2 keys .* shorter than 16 bytes") as refused:
            load(**settings)
        assert short not in str(refused.value)


def test_a_short_search_key_is_warned_of(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    create_app(ServiceSettings(index=served.directory.path, api_key=f"abc,{SEARCH_KEY}"))  # type: ignore[arg-type]
    assert "1 search keys have fewer than 16 bytes" in caplog.text
    assert "abc" not in caplog.text


def test_a_key_for_searches_and_for_writes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", ADMIN_KEY)
    for settings in ({"api_key": f"{SEARCH_KEY},{ADMIN_KEY}"}, {"api_key_file": path}):
        with pytest.raises(KeysError, match="both a search and an admin key") as refused:
            load(**settings, admin_key=ADMIN_KEY)
        assert ADMIN_KEY not in str(refused.value)


def test_keys_do_not_show_in_what_is_printed() -> None:
    keys = load(api_key=f"{SEARCH_KEY},{OTHER_SEARCH_KEY}", admin_key=ADMIN_KEY)
    assert f"{keys} {keys!r} {[keys]}" == "Keys(2 search, 1 admin) Keys(2 search, 1 admin) [Keys(2 search, 1 admin)]"


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": f"{SEARCH_KEY},,"},
        {"admin_key": f"{ADMIN_KEY},"},
        {"admin_key": ADMIN_KEY, "workers": 2},
        {"api_key": SEARCH_KEY, "port": "http"},
        {"tls_key_password": ADMIN_KEY},
    ],
)
def test_settings_that_are_refused_do_not_show_keys(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"GAUSSEARCH_{name.upper()}", str(value))
    with pytest.raises(ValueError, match="validation error") as refused:
        ServiceSettings(index=Path("nowhere"))
    assert not any(key in str(refused.value) for key in (SEARCH_KEY, ADMIN_KEY))


@pytest.mark.parametrize("setting", ["admin_key", "admin_key_file"])
def test_an_admin_key_takes_one_process(setting: str, tmp_path: Path) -> None:
    value = write(tmp_path / "keys", ADMIN_KEY) if setting == "admin_key_file" else ADMIN_KEY
    with pytest.raises(ValueError, match="takes one process"):
        load(**{setting: value}, workers=2)
    assert load(**{setting: value}, workers=1).admin


async def changes(request: Request) -> Response:
    """Stands for every route that changes the index."""
    require_admin(request, request.app.state.gaussearch.keys)
    return Response(status_code=204)


@pytest.fixture
def writable(served: Served, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A service with the keys of the test's parameter, and one route that takes an admin key."""
    app = create_app(ServiceSettings(index=served.directory.path, **request.param))
    app.router.routes.insert(0, Route("/v1/changes", changes, methods=["POST"]))
    client = Client(app)
    wait_until(lambda: client.state.live.ready)
    yield client
    client.close()


def asked(client: Client, key: str | None) -> dict[str, int | str]:
    """How each kind of request is answered with a key, by either header: its status, or its problem's code."""
    answers = []
    for header, prefix in (("authorization", "Bearer "), ("x-api-key", "")):
        headers = {} if key is None else {header: prefix + key}
        search, write = client.get("/v1/index", headers=headers), client.post("/v1/changes", headers=headers)
        for response in (search, write):
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
        statuses = {401: "unauthorized", 403: ""}
        answers.append(
            {
                "search": response_code(search, statuses),
                "write": response_code(write, statuses),
            }
        )
    assert answers[0] == answers[1]
    return answers[0]


def response_code(response: Any, problems: dict[int, str]) -> int | str:
    if response.status_code not in problems:
        return int(response.status_code)
    code: str = response.json()["code"]
    assert problems[response.status_code] in ("", code)
    return code


BOTH = {"api_key": f"{SEARCH_KEY},{OTHER_SEARCH_KEY}", "admin_key": f"{ADMIN_KEY},{OTHER_ADMIN_KEY}"}


@pytest.mark.parametrize("writable", [BOTH], indirect=True)
def test_an_admin_key_opens_everything_and_a_search_key_searches_alone(writable: Client) -> None:
    for key in (ADMIN_KEY, OTHER_ADMIN_KEY):
        assert asked(writable, key) == {"search": 200, "write": 204}
    for key in (SEARCH_KEY, OTHER_SEARCH_KEY):
        assert asked(writable, key) == {"search": 200, "write": "forbidden"}
    for wrong in (None, "", "wrong", ADMIN_KEY[:-1], f"{ADMIN_KEY},{OTHER_ADMIN_KEY}"):
        assert asked(writable, wrong) == {"search": "unauthorized", "write": "unauthorized"}


@pytest.mark.parametrize("writable", [{"api_key": SEARCH_KEY}], indirect=True)
def test_without_an_admin_key_nothing_is_written_whatever_is_sent(writable: Client) -> None:
    assert asked(writable, SEARCH_KEY) == {"search": 200, "write": "writes_disabled"}
    for wrong in (None, "", "wrong"):
        assert asked(writable, wrong) == {"search": "unauthorized", "write": "writes_disabled"}


@pytest.mark.parametrize("writable", [{}], indirect=True)
def test_without_any_key_searches_are_open_and_writes_are_off(writable: Client) -> None:
    for key in (None, "", "wrong"):
        assert asked(writable, key) == {"search": 200, "write": "writes_disabled"}


@pytest.mark.parametrize("writable", [{"admin_key": ADMIN_KEY}], indirect=True)
def test_with_an_admin_key_alone_searches_stay_open_and_writes_take_it(writable: Client) -> None:
    assert asked(writable, ADMIN_KEY) == {"search": 200, "write": 204}
    for wrong in (None, "", "wrong", SEARCH_KEY):
        assert asked(writable, wrong) == {"search": 200, "write": "unauthorized"}


def test_settings_reach_a_process_of_their_own_whole() -> None:
    """uvicorn pickles what it hands to workers; secrets must still be secrets there."""
    settings = ServiceSettings(index=Path("nowhere"), api_key=SEARCH_KEY)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(settings))  # noqa: S301
    assert Keys.load(copy).search == (SEARCH_KEY.encode(),)
    assert SEARCH_KEY not in repr(copy)
