# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Run a generator in a process of its own, with a time limit and a memory limit.

Decoders are C libraries: a hostile file can make one loop for ever, ask for all memory or end its process. None of that
may cost more than that file.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection


MEMORY_BYTES = 3 << 30  # more than a fresh worker has; the largest frames that are read need a fifth of it
_READY, _END, _ITEM, _ERROR = "ready", "end", "item", "error"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_START_S = 600  # the first process imports the package, on a busy machine


class WorkerDied(Exception):
    """The worker was lost over one call; `code` is "timeout" or "crashed"."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code, self.detail = code, detail


def _serve(connection: Connection, function, memory_bytes: int) -> None:
    # Ctrl-C and a job's end are for the parent; when it is gone, so is the pipe. Killed with this process, it would take
    # the file for one that crashes decoders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.path.exists("/proc/self/statm"):  # Linux; elsewhere the time limit must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a decoder that loops would stay for ever
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pixels
    connection.send((_READY, None))
    while True:
        try:
            arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            for item in function(*arguments):
                connection.send((_ITEM, item))
            connection.send((_END, None))
        except ConnectionError:
            return
        except MemoryError:
            connection.send((_ERROR, "asked for more memory than allowed"))
            return  # what is left of this process's memory is in no known state
        except Exception as error:
            connection.send((_ERROR, f"{type(error).__name__}: {error}"))
            return


class IsolatedWorker:
    """A process that runs `function`, a generator, call by call; a new one takes its place when it is lost.

    Args:
        function: importable from its module, as it is pickled. timeout_s: the longest wait for the next item.
    """

    def __init__(self, function, timeout_s: float, memory_bytes: int = MEMORY_BYTES):
        self.function, self.timeout_s, self.memory_bytes = function, timeout_s, memory_bytes
        self.process, self.connection = None, None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        # What takes seconds to import is imported once, not by every process.
        context.set_forkserver_preload([self.function.__module__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.function, self.memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        if not self.connection.poll(_START_S):
            raise RuntimeError(f"a worker process did not start within {_START_S} s")
        self.connection.recv()

    def __call__(self, *arguments, first_s: float = 0.0) -> Iterator:
        """The items of `function(*arguments)`; the first of them may take `first_s` longer.

        Raises:
            WorkerDied: the process took too long for an item, ended, or raised.
        """
        if self.process is None or not self.process.is_alive():
            self.close()
            self._start()
        try:
            self.connection.send(arguments)
            while True:
                if not self.connection.poll(self.timeout_s + first_s):
                    raise WorkerDied("timeout", f"no answer within {self.timeout_s + first_s:g} s")
                first_s = 0.0
                kind, item = self.connection.recv()
                if kind == _ERROR:
                    raise WorkerDied("crashed", item)
                if kind == _END:
                    return
                yield item
        except (EOFError, OSError) as error:
            self.process.join(5)
            raise self._lost(
                WorkerDied("crashed", f"the decoder ended its process (exit code {self.process.exitcode})")
            ) from error
        except (WorkerDied, GeneratorExit) as error:
            raise self._lost(error) from None

    def _lost(self, error):
        self.close()
        return error

    def close(self) -> None:
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()
            self.process = None
