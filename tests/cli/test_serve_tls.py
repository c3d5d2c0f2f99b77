"""What the flags about TLS mean together, and what is refused of them."""

import pytest

from mlserve.cli.serve_tls import tls_of
from mlserve.errors import UsageError
from mlserve.runs.production import ServeChoice
from mlserve.serve.settings import TlsSettings

PAIR = {"tls_cert": "cert.pem", "tls_key": "key.pem"}


def meant(**flags):
    return tls_of(ServeChoice(models=("m",), **flags))


def test_without_flags_it_is_plain_text():
    assert meant() is None


def test_files_are_meant_from_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    assert meant(**PAIR) == TlsSettings(f"{here}/cert.pem", f"{here}/key.pem")
    assert meant(**PAIR, tls_client_ca="root.pem", tls_client_required=True, tls_identities="who.toml") == TlsSettings(
        f"{here}/cert.pem", f"{here}/key.pem", f"{here}/root.pem", client_required=True, identities=f"{here}/who.toml"
    )


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"tls_cert": "cert.pem"}, "--tls-cert needs --tls-key"),
        ({"tls_key": "key.pem"}, "--tls-key needs --tls-cert"),
        ({"tls_client_ca": "root.pem"}, "--tls-client-ca needs --tls-cert and --tls-key"),
        ({"tls_client_required": True}, "--tls-client-required needs --tls-cert and --tls-key"),
        ({**PAIR, "tls_client_required": True}, "--tls-client-required needs --tls-client-ca"),
        ({**PAIR, "tls_identities": "who.toml"}, "--tls-identities needs --tls-client-ca"),
        ({**PAIR, "tls_client_ca": "root.pem"}, "--tls-client-ca alone changes nothing"),
    ],
)
def test_a_flag_that_means_nothing_without_another_says_which(flags, complaint):
    with pytest.raises(UsageError, match=complaint):
        meant(**flags)
