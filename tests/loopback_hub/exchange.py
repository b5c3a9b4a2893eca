"""One HTTP exchange: a request is answered, or fails as a test requests."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub.faults import take_fault

if TYPE_CHECKING:
    from loopback_hub.server import Hub

USERS = {"alice-token": "alice", "bob-token": "bob"}


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class Exchange(BaseHTTPRequestHandler):
    """A request and its answer. `routes` of a subclass maps "METHOD /path" to its methods."""

    routes: ClassVar[tuple[tuple[str, Callable[..., None]], ...]]
    protocol_version = "HTTP/1.1"
    server: Hub

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        line = f"{self.command} {path}"
        self.server.log.append(line)
        self.fault = take_fault(self.server.faults, line)
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault.kind == "cut_request":
            self.rfile.read(length // 2)
            self.cut()
            return
        self.body = self.rfile.read(length)
        if self.fault.kind == "status":
            self.answer(self.fault.status, b'{"error": "as the test wants it"}', **self.fault.headers)
            return
        try:
            self.route(path)
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer(refusal.status, json.dumps({"error": refusal.message}).encode(), **headers)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (http.server's names)

    def route(self, path: str) -> None:
        path = re.sub(r"^/api/spaces/", "/api/models/", re.sub(r"^/spaces/", "/", path))  # one namespace for both
        for pattern, method in self.routes:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match is not None:
                method(self, **match.groupdict())
                return
        raise RefusalError(404, f"this Hub does not know {self.command} {path}")

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        """Send `content`, modified by a fault."""
        content = self.fault.announced(content)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(self.fault.sent(content))
        if self.fault.kind == "cut_answer":
            self.cut()

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode())

    def cut(self) -> None:
        """End the connection here and now."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def user(self) -> str | None:
        """Who asks, by the token; None without one."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        name = USERS.get(header.removeprefix("Bearer "))
        if name is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return name
