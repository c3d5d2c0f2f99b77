"""Who a client is by its certificate: the names in one, the file that says what they allow, and what they grant."""

import logging
import time

import pytest

from mlserve.errors import Forbidden, Unauthenticated, UsageError
from mlserve.serve.access import CERTIFICATE, Access, Key, digest
from mlserve.serve.identities import Identities, IdentityFile, certificate_credential

NOT_AFTER = "Jan  1 00:00:00 2100 GMT"


class Connection:
    """As much of a transport as is looked at."""

    def __init__(self, certificate):
        self._certificate = certificate

    def get_extra_info(self, name, default=None):
        return self._certificate if name == "peercert" else default


def shown(common_name="ci", names=(), not_after=NOT_AFTER):
    subject = ((("organizationName", "us"),), (("commonName", common_name),))
    return certificate_credential(Connection({"subject": subject, "subjectAltName": names, "notAfter": not_after}))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "identities.toml"


def write(path, *identities, version=1):
    tables = [f"[[identity]]\ncertificate = {name!r}\nscopes = {scopes!r}\n" for name, scopes in identities]
    path.write_text(f"format_version = {version}\n" + "".join(tables))


@pytest.mark.parametrize("certificate", [None, {}])
def test_a_connection_without_a_certificate_says_nothing(certificate):
    assert certificate_credential(Connection(certificate)) is None


def test_every_name_of_a_certificate_counts_by_its_kind(path):
    names = (
        ("DNS", "a.example"),
        ("URI", "spiffe://x/y"),
        ("email", "a@b"),
        ("IP Address", "10.0.0.1"),
        ("other", "z"),
    )
    write(
        path,
        ("CN:ci", ["infer"]),
        ("DNS:a.example", ["metrics"]),
        ("URI:spiffe://x/y", ["admin"]),
        ("DNS:ci", ["metadata"]),
    )
    identities = IdentityFile(path).read()
    assert identities.verify(shown("ci")).scopes == {"infer"}
    grant = identities.verify(shown("ci", names))
    assert (grant.name, grant.scopes, grant.until_s) == ("CN:ci", {"infer", "metrics", "admin"}, 4102444800)
    assert identities.verify(shown("x", (("URI", "spiffe://x/y"),))).name == "URI:spiffe://x/y"
    for stranger in (shown("a.example"), shown("x", (("DNS", "spiffe://x/y"),)), shown("")):
        with pytest.raises(Unauthenticated, match="no name that is known"):
            identities.verify(stranger)


def test_a_name_with_a_nul_is_none():
    credential = shown("ci\0CN:admin", (("DNS", "a\0DNS:b"), ("DNS", "c")))
    assert credential.removeprefix(CERTIFICATE).split(b"\0")[1:] == [b"DNS:c"]


def test_certificates_are_known_beside_keys_and_lose_what_is_taken_from_them(path):
    access = Access([Key("k", digest(b"secret"), frozenset({"admin"}))])
    with pytest.raises(Unauthenticated):
        access.check("infer", shown())
    access.replace_certified(Identities({"CN:ci": frozenset({"infer"})}))
    access.check("infer", shown())
    access.check("admin", b"Bearer secret")
    with pytest.raises(Forbidden):
        access.check("admin", shown())
    access.replace([])  # the keys changed: certificates go on
    access.check("infer", shown())
    access.replace_certified(Identities({}))
    with pytest.raises(Unauthenticated):
        access.check("infer", shown())


def test_certificates_alone_close_the_server():
    access = Access(None)
    access.replace_certified(Identities({"CN:ci": frozenset({"infer"})}))
    access.replace(None)
    assert not access.open
    with pytest.raises(Unauthenticated):
        access.check("infer", None)
    with pytest.raises(Unauthenticated):  # the same bytes, as a client might send them in a header
        access.check("infer", shown().lstrip(b"\0"))


def test_a_connection_that_outlives_its_certificate_may_ask_no_more():
    now_s = [0.0]
    access = Access(None, now=lambda: now_s[0])
    access.replace_certified(Identities({"CN:ci": frozenset({"infer"})}))
    credential = shown(not_after="Jan  1 00:01:00 1970 GMT")
    access.check("infer", credential)
    now_s[0] = 60.0
    with pytest.raises(Unauthenticated):
        access.check("infer", credential)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "format_version"),
        ("format_version = 2\nidentity = []", "has format version 2"),
        ("format_version = 1\nnonsense = 1\nidentity = []", "nonsense"),
        ("format_version = 1\n[[identity]]\ncertificate = 'ci'\nscopes = ['infer']", "'ci' names none; write it like"),
        ("format_version = 1\n[[identity]]\ncertificate = 'CN:'\nscopes = ['infer']", "'CN:' names none"),
        ("format_version = 1\n[[identity]]\ncertificate = 'CN:a'\nscopes = []", "has no scope"),
        ("format_version = 1\n[[identity]]\ncertificate = 'CN:a'\nscopes = ['root']", "root"),
        ("format_version = 1\n" + 2 * "[[identity]]\ncertificate = 'CN:a'\nscopes = ['infer']\n", "has two identities"),
        ("\udcff", "is no file of identities"),
        ("[", "is no file of identities"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_with_its_place(path, text, complaint):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=complaint) as found:
        IdentityFile(path).read()
    assert str(path) in str(found.value)


def test_a_change_is_noticed_and_a_bad_one_changes_nothing(path, caplog):
    write(path, ("CN:a", ["infer"]))
    file = IdentityFile(path)
    file.read()
    assert file.changed() is None
    time.sleep(0.01)
    write(path, ("CN:a", ["infer"]), ("CN:b", ["infer"]))
    assert len(file.changed()) == 2
    time.sleep(0.01)
    path.write_text("[")
    with caplog.at_level(logging.WARNING):
        assert file.changed() is file.changed() is None
    assert len(caplog.records) == 1
