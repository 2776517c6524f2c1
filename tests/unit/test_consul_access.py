"""The token and the TLS of requests to Consul."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from common.consul_access import TOKEN, ConsulAccess
from common.consul_client import connect
from common.environment import ConfigError
from tests.support.certificates import Authority


def sent_token(session: requests.Session) -> str | None:
    """The token that a request of the session has."""
    return session.prepare_request(requests.Request("GET", "http://127.0.0.1/")).headers.get("X-Consul-Token")


def problems(**env: str) -> list[str]:
    """The problems of an environment."""
    with pytest.raises(ConfigError) as caught:
        ConsulAccess.from_env(env)
    return caught.value.problems


def test_without_variables_the_agent_is_asked_by_http_with_its_own_token() -> None:
    access = ConsulAccess.from_env({})
    assert access.make_url("::1", 8500) == "http://[::1]:8500"
    assert sent_token(access.make_session()) is None
    assert access.make_session().verify is True


def test_a_token_is_sent_and_never_shown() -> None:
    access = ConsulAccess.from_env({"CONSUL_HTTP_TOKEN": "secret"})
    assert sent_token(access.make_session()) == "secret"
    assert "secret" not in repr(access)


def test_the_token_of_a_file_is_sent_before_the_other_and_a_replaced_one_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    session = ConsulAccess.from_env({"CONSUL_HTTP_TOKEN": "other", "CONSUL_HTTP_TOKEN_FILE": str(file)}).make_session()
    assert sent_token(session) == "first"
    file.write_text("second")
    assert sent_token(session) == "second"
    # As between the two steps of a replacement.
    for write in (lambda: file.write_text(""), file.unlink):
        write()
        assert sent_token(session) == "second"


def test_the_librarys_client_sends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of the shell")
    (tmp_path / "token").write_text("of-the-file")
    authority = Authority(tmp_path)
    client_pair = authority.issue("client")
    access = ConsulAccess.from_env(
        {
            "CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "token"),
            "CONSUL_HTTP_SSL": "TRUE",
            "CONSUL_CACERT": str(authority.path),
            "CONSUL_CLIENT_CERT": str(client_pair.certificate),
            "CONSUL_CLIENT_KEY": str(client_pair.key),
            "CONSUL_TLS_SERVER_NAME": "server.dc1.consul",
        }
    )
    client = connect("127.0.0.1", 8501, access)
    assert client.http.base_uri == "https://127.0.0.1:8501"
    assert (client.http.verify, client.http.cert) == (
        str(authority.path),
        (str(client_pair.certificate), str(client_pair.key)),
    )
    assert client.token in (None, "")
    assert sent_token(client.http.session) == "of-the-file"


@pytest.mark.parametrize("name", ["CONSUL_HTTP_TOKEN_FILE", "CONSUL_CACERT"])
def test_a_missing_or_wrong_file_is_named(name: str, tmp_path: Path) -> None:
    assert problems(**{name: str(tmp_path / "none")})[0].startswith(f"{name}: must be a readable file: No such file")
    (tmp_path / "wrong").write_bytes(b"\xff\n secret \n")
    found = problems(**{name: str(tmp_path / "wrong")})
    assert len(found) == 1
    assert found[0].startswith(f"{name}: must be a file with a ")
    assert "secret" not in found[0]


def test_a_certificate_and_its_key_come_together(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client_pair = authority.issue("client")
    other = authority.issue("other").key
    assert problems(CONSUL_CLIENT_CERT=str(client_pair.certificate)) == [
        "CONSUL_CLIENT_KEY: must be set, because CONSUL_CLIENT_CERT is"
    ]
    assert problems(CONSUL_CLIENT_KEY=str(client_pair.key)) == [
        "CONSUL_CLIENT_CERT: must be set, because CONSUL_CLIENT_KEY is"
    ]
    assert problems(CONSUL_CLIENT_CERT=str(client_pair.certificate), CONSUL_CLIENT_KEY=str(other))[0].startswith(
        "CONSUL_CLIENT_KEY: must be the key of CONSUL_CLIENT_CERT"
    )


def test_a_token_that_no_header_can_have_is_refused_without_showing_it() -> None:
    assert problems(**dict.fromkeys([TOKEN], "two words")) == [
        "CONSUL_HTTP_TOKEN: must be a token of printable characters without spaces"
    ]
