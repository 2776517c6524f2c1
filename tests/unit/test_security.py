"""The secrets of the secure stack: files, certificates and policies."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from local_stack.settings import ROOT
from security.authority import Authority, Pair
from security.errors import SecurityError
from security.files import TOKENS, Secrets, read_tokens
from security.policies import list_roles

PROMETHEUS = ROOT / "build/config/prometheus/etc/prometheus"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of secrets for one application."""
    Secrets(tmp_path / "secrets", ["shop"]).create()
    return tmp_path / "secrets"


def test_only_the_owner_enters_and_containers_read_what_is_mounted(directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.rglob("*"):
        private = path.name in ("ca-key.pem", "callers-ca-key.pem", "gossip-key")
        wanted = 0o755 if path.is_dir() else 0o600 if private else 0o444
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_existing_files_stay_and_a_new_application_is_added(directory: Path) -> None:
    before, tokens = contents(directory), read_tokens(directory / TOKENS)["tokens"]
    made = Secrets(directory, ["cart"])
    made.create()
    after = contents(directory)
    changed = {name for name in before if before[name] != after[name]}
    # The list of tokens has more.
    assert changed == {str(TOKENS)}
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"cart"}
    assert tokens.items() < read_tokens(directory / TOKENS)["tokens"].items()
    assert made.applications == ("shop", "cart")


def test_a_rotation_renews_the_certificates_and_nothing_else(directory: Path) -> None:
    before = contents(directory)
    Secrets(directory).create(rotate=True)
    after = contents(directory)
    certificates = {name for name in before if name.endswith(".pem") and "ca" not in Path(name).stem.split("-")}
    assert {name for name in before if before[name] != after[name]} == certificates
    assert before.keys() == after.keys()


def test_certificates_have_the_names_that_their_peers_verify(directory: Path) -> None:
    wanted = {
        "consul-server/consul.pem": {"server.dc1.consul", "localhost"},
        "shop/consul.pem": {"client.dc1.consul", "localhost"},
        "shop/tls.pem": {"shop"},
        "load-balancer/tls.pem": {"localhost", "load-balancer"},
        "load-balancer/replica.pem": {"load-balancer"},
    }
    for name, names in wanted.items():
        certificate = x509.load_pem_x509_certificate((directory / name).read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names <= set(found.get_values_for_type(x509.DNSName)), name
        assert ("server.dc1.consul" in found.get_values_for_type(x509.DNSName)) is (name.startswith("consul-server"))


def test_callers_and_the_stack_have_different_cas(directory: Path) -> None:
    caller = x509.load_pem_x509_certificate((directory / "caller" / "tls.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    own = x509.load_pem_x509_certificate((directory / "callers-ca.pem").read_bytes())
    caller.verify_directly_issued_by(own)
    with pytest.raises(ValueError, match="match"):
        caller.verify_directly_issued_by(authority)


@pytest.mark.parametrize("names", [["a b"], ["load-balancer"], ["shop", "shop-two"], ["load"], ["load-balancer-two"]])
def test_a_name_that_is_part_of_another_one_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(SecurityError, match=r"^--application: must "):
        Secrets(tmp_path / "secrets", names).create()
    assert not (tmp_path / "secrets").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"applications": [], "tokens": {"a": {}}}', '{"tokens": 1}'])
def test_a_damaged_list_of_tokens_is_named(directory: Path, text: str) -> None:
    path = directory / TOKENS
    path.chmod(0o600)
    path.write_text(text)
    with pytest.raises(SecurityError, match=r"tokens\.json can't be read"):
        Secrets(directory)


def test_a_damaged_ca_is_named(directory: Path) -> None:
    with pytest.raises(SecurityError, match="the CA can't be read"):
        Authority(Pair((directory / "ca.pem").read_bytes(), b"x"))


def test_a_registrar_writes_its_own_application_only() -> None:
    rules = list_roles(["shop", "cart"])["shop-registrar"]
    assert rules["service"] == {"shop": {"policy": "write"}}
    written = [
        name
        for kind in rules.values()
        if not isinstance(kind, str)
        for name, right in kind.items()
        if right == {"policy": "write"}
    ]
    assert {name.rpartition("/")[2].removesuffix("-") for name in written} == {"shop"}


def test_prometheus_reads_the_same_but_for_the_way_to_consul() -> None:
    ours, secure = (yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("prometheus.yml", "secure.yml"))
    (way,) = secure["scrape_configs"][0]["consul_sd_configs"]
    for name in ("scheme", "tls_config", "authorization"):
        del way[name]
    assert ours == secure
