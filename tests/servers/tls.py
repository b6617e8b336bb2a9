"""A certificate authority of the tests' own."""

from __future__ import annotations

import os

import trustme


class Authority:
    """Writes ``ca.pem`` (for clients), ``cert.pem`` and ``key.pem`` (for a server on 127.0.0.1) into ``directory``."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        self.ca_file = os.path.join(directory, "ca.pem")
        self.cert_file = os.path.join(directory, "cert.pem")
        self.key_file = os.path.join(directory, "key.pem")
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.ca_file)
        server.private_key_pem.write_to_path(self.key_file)
        server.cert_chain_pems[0].write_to_path(self.cert_file)
