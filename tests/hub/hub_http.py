# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""One request at the stand-in Hub of the tests: its body, its answer, parts of files, and the fault that it meets."""

import json
import re
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_faults import Cut, CutReader, CutWriter
from hub_store import HubError


class RequestHandler(BaseHTTPRequestHandler):
    """Calls `self.route(path)`, which answers by `json` or `content` or raises HubError."""

    protocol_version = "HTTP/1.1"

    # One request
    def handle_request(self):
        address = urlsplit(self.path)
        self.query, self.status, self.body_bytes, self.body_begun = parse_qs(address.query), 0, 0, False
        self.fault = self.server.faults.of(self.command, self.path) if "/_control/" not in self.path else {}
        self.answer_file, plain_reader = self.wfile, self.rfile
        try:
            time.sleep(self.fault.get("delay", 0))
            if "cut_request" in self.fault:
                self.rfile = CutReader(self.rfile, self.fault["cut_request"])
                self.body()
                raise Cut
            if "status" in self.fault and not self.fault.get("after"):
                raise HubError(self.fault["status"], "a fault of the tests")
            if "cut_response" in self.fault:
                self.answer_file = CutWriter(self.wfile, self.fault["cut_response"])
            self.route(unquote(address.path))
        except HubError as error:
            if not self.body_begun:
                self.body()  # what is left of it would be taken for the next request
            self.json(error.status, {"error": error.message}, {"X-Error-Message": error.message} | (
                {"X-Error-Code": error.code} if error.code else {}) | self.fault.get("headers", {}))  # fmt: skip
        except (Cut, ConnectionError):
            self.close_connection = True
        finally:
            self.rfile = plain_reader
            self.server.log(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    # Reading and answering
    def pieces(self):
        """The body, in pieces, whether its length is told or not."""
        self.body_begun = True
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(100).split(b";")[0] or b"0", 16):
                while size:
                    piece = self.rfile.read(min(size, 65536))
                    if not piece:
                        raise Cut
                    size, self.body_bytes = size - len(piece), self.body_bytes + len(piece)
                    yield piece
                self.rfile.readline(10)
            self.rfile.readline(10)
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, 65536))
            if not piece:
                raise Cut
            left, self.body_bytes = left - len(piece), self.body_bytes + len(piece)
            yield piece

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def body_json(self) -> dict:
        try:
            return json.loads(self.body() or b"{}")
        except json.JSONDecodeError as error:
            raise HubError(400, f"The body is no JSON: {error}") from error

    def start(self, status: int, headers: dict):
        if self.fault.get("after") and "status" in self.fault and status != self.fault["status"]:
            raise HubError(self.fault["status"], "a fault of the tests, after the fact")
        self.status = status
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.answer_file.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))

    def json(self, status: int, content, headers: dict | None = None):
        text = json.dumps(content).encode()
        self.start(status, {"Content-Type": "application/json", "Content-Length": len(text), **(headers or {})})
        if self.command != "HEAD":
            self.answer_file.write(text)

    def content(self, path: Path, size: int, headers: dict):
        first, last, status = 0, size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and any(wanted.groups()):
            begin, end = wanted.groups()
            first = int(begin) if begin else max(size - int(end), 0)
            last = min(int(end), size - 1) if begin and end else size - 1
            if first > last:
                return self.start(416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": 0})
            status, headers = 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        self.start(status, headers | {"Content-Length": last - first + 1})
        if self.command == "HEAD":
            return
        with open(path, "rb") as file:
            file.seek(first)
            left = last - first + 1
            while left:
                piece = file.read(min(left, 65536))
                self.answer_file.write(piece)
                left -= len(piece)

    def log_message(self, *args):
        """Nothing on stderr; `HubServer.log` has it."""
