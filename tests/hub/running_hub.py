# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The stand-in Hub of hub_server.py as a process of its own, for the time of a test.

with running_hub(tmp_path / "hub") as hub:
    subprocess.run([sys.executable, "recipes/publish.py", ...], env=hub.environment(tmp_path / "home"))
    with hub.connected(tmp_path / "home"):       # this very process
        HfApi().model_info("lab/urfm")
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import huggingface_hub
from huggingface_hub import constants, hf_api


SERVER = Path(__file__).with_name("hub_server.py")


@dataclass
class Hub:
    """A server that runs: `url`, what it keeps (`root`), and the token that may write (None: as nobody)."""

    url: str
    root: Path
    token: str | None

    def environment(self, home: Path, offline: bool = False) -> dict[str, str]:
        """The whole environment of a process that talks to this server and keeps its cache in `home`."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return kept | {
            "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
        } | ({"HF_TOKEN": self.token} if self.token else {}) | ({"HF_HUB_OFFLINE": "1"} if offline else {})  # fmt: skip

    @contextmanager
    def connected(self, home: Path, offline: bool = False) -> Iterator[None]:
        """Let huggingface_hub in this very process talk to this server. transformers keeps its own idea of offline."""
        values = {
            "ENDPOINT": self.url, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": True, "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
        }  # fmt: skip
        with (
            mock.patch.multiple(constants, **values),
            mock.patch.object(hf_api.api, "endpoint", self.url),  # which the functions of the module use
            mock.patch.dict(os.environ, self.environment(home, offline)),
        ):
            if self.token is None:
                os.environ.pop("HF_TOKEN", None)
            forget_connections()
            try:
                yield
            finally:
                forget_connections()

    def requests(self) -> list[dict]:
        """Every request so far: method, path, bytes (of its body), status, and the fault that it met."""
        log = self.root / "requests.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget_requests(self) -> None:
        (self.root / "requests.jsonl").unlink(missing_ok=True)

    def add_fault(self, **fault) -> None:
        """From now on; see hub_faults.py."""
        self._control("POST", json.dumps(fault).encode())

    def clear_faults(self) -> None:
        self._control("DELETE", None)

    def _control(self, method: str, content: bytes | None) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(
            urllib.request.Request(f"{self.url}/_control/faults", data=content, method=method), timeout=10
        ).close()


def forget_connections() -> None:
    """Of huggingface_hub, and of transformers, which keeps a client of its own."""
    huggingface_hub.close_session()
    if "transformers.utils.hub" in sys.modules:
        sys.modules["transformers.utils.hub"]._hf_api = None


@contextmanager
def running_hub(
    root: Path, *, faults: tuple[dict, ...] = (), token: str | None = "hf_test", tokens: tuple[str, ...] = (),
    minimal: bool = False, port: int = 0,
) -> Iterator[Hub]:  # fmt: skip
    """Start the server on `root` (kept from an earlier one, if there was one) and end it afterwards.

    Args:
        token: may write everywhere, as `tester`.
        tokens: more of them, as `TOKEN=USER:NAMESPACE,NAMESPACE`; with no namespaces, everywhere.
        minimal: only the endpoints that publishing and loading need.
    """
    root.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(SERVER),
        "--root",
        str(root),
        "--port",
        str(port),
        *(["--minimal"] if minimal else []),
    ]
    for text in ([token] if token else []) + list(tokens):
        command += ["--token", text]
    for fault in faults:
        command += ["--fault", json.dumps(fault)]
    with open(root / "server.log", "a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"The server did not start: {(root / 'server.log').read_text()[-2000:]}")
        yield Hub(url, root, token)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
