"""An embedded object store with the S3 API: SeaweedFS, on loopback, to try Daguerre with one bucket."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from service.launcher.embedded import binaries
from service.launcher.embedded.server import Server
from service.launcher.process import Program

BUCKET = "daguerre"
_REGION = "us-east-1"
_TIMEOUT_S = 2
# Each of its parts has a second port, for gRPC, this much above the first.
_GRPC_OFFSET = 10_000
_MAX_PORT_ATTEMPTS = 100


class ObjectStoreServer(Server):
    """One server. `folder` is its own and holds the data and the keys; also the sockets and the log unless their paths
    are given.
    """

    def __init__(self, folder: Path, *, socket_folder: Path | None = None, log: Path | None = None) -> None:
        self.folder = folder
        self._socket_folder = socket_folder or folder
        self.log = log or folder / "seaweedfs.log"
        self._s3_port, self._filer_port, self._master_port, self._volume_port = _find_free_ports(4)

    @property
    def url(self) -> str:
        """The value of DAGUERRE_STORAGE."""
        return f"s3://{BUCKET}"

    def environment(self) -> dict[str, str]:
        """Returns the variables with which the AWS tools, and so Daguerre, reach the server."""
        key, secret = self._read_keys()
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._s3_port}",
            "AWS_REGION": _REGION,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_SESSION_TOKEN": "",  # that of the user belongs to other keys
        }

    def program(self) -> Program:
        """Returns the server as a program to supervise. Creates its folder."""
        data = self.folder / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, secret = self._read_keys()
        identity = {
            "name": "daguerre",
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")],
        }
        config = self.folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        options: Mapping[str, object] = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": self._master_port,
            "master.volumeSizeLimitMB": 1024,
            "master.telemetry": "false",  # it would report to its authors
            "volume.port": self._volume_port,
            "volume.max": 0,  # as many as fit on the disk
            "filer.port": self._filer_port,
            "filer.localSocket": self._socket_folder / "filer.sock",
            "s3.port": self._s3_port,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self._socket_folder / "s3.sock",
            "s3.config": config,
        }
        return Program(
            name="SeaweedFS",
            argv=[
                binaries.seaweedfs(),
                "-logtostderr=true",
                "server",
                "-s3",
                *(f"-{name}={value}" for name, value in options.items()),
            ],
            log=self.log,
            # It takes half a minute to stop by itself, during which no other one can use its files. It loses nothing
            # that it has acknowledged.
            stop_signal=signal.SIGKILL,
            death_signal=signal.SIGKILL,
            ready=self._is_ready,
        )

    def _read_keys(self) -> tuple[str, str]:
        """Returns the access key and its secret, which are created once."""
        path = self.folder / "keys"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_suffix(".partial")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"{secrets.token_hex(10)} {secrets.token_hex(20)}\n")
            draft.rename(path)
        key, secret = path.read_text().split()
        return key, secret

    def _is_ready(self, _pid: int) -> bool:
        """Returns whether each part responds, and there is a place for objects. Creates the bucket."""
        return (
            _request(self._filer_port, "POST", f"/buckets/{BUCKET}/") in {201, 409}
            and _request(self._master_port, "GET", "/dir/assign") == 200
            and _request(self._s3_port, "GET", f"/{BUCKET}") == 403  # a request without a signature
        )


def _request(port: int, method: str, path: str) -> int:
    """Returns the status of the response, or 599 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 599
    finally:
        connection.close()


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        ports: list[int] = []
        for _ in range(_MAX_PORT_ATTEMPTS):
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            if port + _GRPC_OFFSET < 1 << 16:
                try:
                    stack.enter_context(socket.create_server(("127.0.0.1", port + _GRPC_OFFSET)))
                except OSError:
                    continue
                ports.append(port)
                if len(ports) == count:
                    return ports
    raise OSError("there are no free ports on loopback")
