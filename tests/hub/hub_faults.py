# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What goes wrong on purpose at the stand-in Hub of the tests.

A fault is a dict:
    path, method    which requests: a regular expression searched in the path with its query, and a method; default all
    nth, times      from which of those requests on (the first is 1), and how many [1, 1]; times null: for ever
    status          answer this status at once; with "after": true, do what was asked first (an answer that is lost)
    headers         of that answer, for example {"Retry-After": "1"}
    cut_request     cut the connection after so many bytes of the request's body; nothing is done
    cut_response    do what was asked, and cut the connection after so many bytes of the answer, its headers included
    delay           seconds before anything else
"""

import re
import threading


KEYS = {"path", "method", "nth", "times", "status", "after", "headers", "cut_request", "cut_response", "delay"}


class Cut(ConnectionError):
    """The connection is to be cut here."""


class Faults:
    """The faults in force, and how many requests each has seen."""

    def __init__(self, faults: list[dict]):
        self.lock, self.faults, self.seen = threading.Lock(), [], []
        for fault in faults:
            self.add(fault)

    def add(self, fault: dict) -> None:
        if unknown := set(fault) - KEYS:
            raise ValueError(f"A fault has no {sorted(unknown)}. There are: {sorted(KEYS)}.")
        with self.lock:
            self.faults.append(fault)
            self.seen.append(0)

    def clear(self) -> None:
        with self.lock:
            self.faults, self.seen = [], []

    def of(self, method: str, path: str) -> dict:
        """The first fault that this request meets, or {}. Every fault counts the requests that it is about."""
        met = {}
        with self.lock:
            for place, fault in enumerate(self.faults):
                if fault.get("method") not in (None, method) or not re.search(fault.get("path", ""), path):
                    continue
                self.seen[place] += 1
                first, times = fault.get("nth", 1), fault.get("times", 1)
                if self.seen[place] >= first and (times is None or self.seen[place] < first + times):
                    met = met or fault
        return met


class CutWriter:
    """A file to write to that cuts after `left` bytes."""

    def __init__(self, file, left: int):
        self.file, self.left = file, left

    def write(self, content: bytes) -> int:
        self.file.write(content[: self.left])
        if len(content) > self.left:
            self.file.flush()
            raise Cut
        self.left -= len(content)
        return len(content)

    def flush(self) -> None:
        self.file.flush()


class CutReader:
    """A file to read from that cuts after `left` bytes."""

    def __init__(self, file, left: int):
        self.file, self.left = file, left

    def read(self, size: int) -> bytes:
        if self.left <= 0:
            raise Cut
        content = self.file.read(min(size, self.left))
        self.left -= len(content)
        return content

    def readline(self, limit: int = -1) -> bytes:
        content = self.file.readline(limit)
        self.left -= len(content)
        if self.left <= 0:
            raise Cut
        return content
