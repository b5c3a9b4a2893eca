"""The Hub as a server: a loopback address, its state, and controls for tests.

``hub.fail(...)`` makes the next requests that match go wrong; ``hub.log`` has all requests.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from loopback_hub.api import Api
from loopback_hub.faults import KINDS, Fault
from loopback_hub.repository import Repository


class Hub(ThreadingHTTPServer):
    """Start with ``with Hub() as hub:``; its address is ``hub.url``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # sha256 -> content
        self.log: list[str] = []  # "METHOD /path"
        self.faults: list[Fault] = []
        self.connections: list[socket.socket] = []

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone: open connections end, new ones are refused."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections = []

    def start_again(self) -> None:
        """Be back, at the same address."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.__enter__()

    def fail(self, pattern: str, fault: str, times: int = 1, status: int = 500, headers: Any = None) -> None:
        """Make the next `times` requests whose "METHOD /path" matches `pattern` go wrong in one of the `KINDS`."""
        assert fault in KINDS
        self.faults.append(Fault(re.compile(pattern), fault, times, status, headers or {}))

    def reset(self) -> None:
        """Forget faults and log."""
        self.faults, self.log = [], []

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line in self.log)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Cut connections are part of the tests."""
