"""Stepping the engine on a thread of its own while there is work, and handing each output to who asked.

Callers wait for outputs and can be interrupted; the engine cannot be, halfway through a step. The thread ends
when all requests have, so a model nobody uses is held by nothing. A process that ends meanwhile stops the thread
first: kernels must not run while the interpreter and their library are taken apart under them.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import threading
from collections.abc import Callable

from tianquan.engine.engine import Engine
from tianquan.engine.interface import EngineRequest, EngineStatistics, RequestOutput
from tianquan.errors import ModelError

logger = logging.getLogger(__name__)

Listener = Callable[[RequestOutput], None]


class EngineDriver:
    """The one owner of an engine. Every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()  # of the two fields below; never held during a step
        self._listeners: dict[int, tuple[Listener, Callable[[Exception], None]]] = {}
        self._thread: threading.Thread | None = None

    def submit(self, request: EngineRequest, listener: Listener, on_failure: Callable[[Exception], None]) -> int:
        """Queue a request and return its id.

        Args:
            request: what to answer.
            listener: called on the stepping thread with each output, the last one included; must be quick.
            on_failure: called instead of a last output if the engine itself breaks.

        Raises:
            ParameterError, PromptError: see `Engine.add`.
        """
        with self._lock:
            request_id = self.engine.add(request)
            self._listeners[request_id] = (listener, on_failure)
            if self._thread is None:
                atexit.register(self._stop_at_exit)
                self._thread = threading.Thread(target=self._run, name="tianquan-engine", daemon=True)
                self._thread.start()
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request; its listener hears of it. Nothing happens if it has ended."""
        self.engine.abort(request_id)

    def statistics(self) -> EngineStatistics:
        """Return a snapshot; counts of a step in progress may be partly in it."""
        return self.engine.statistics()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._listeners:
                    self._thread = None
                    atexit.unregister(self._stop_at_exit)
                    return
            try:
                outputs = self.engine.step()
            except Exception as error:
                logger.exception("the engine stopped")
                self._give_up(error)
                return
            for output in outputs:
                self._deliver(output)

    def _deliver(self, output: RequestOutput) -> None:
        with self._lock:
            entry = self._listeners.get(output.request_id)
            if output.end is not None:
                self._listeners.pop(output.request_id, None)
        if entry is None:
            return
        try:
            entry[0](output)
        except Exception:  # one caller's mistake must not end the others' answers
            logger.exception("a listener of request %d failed", output.request_id)
            self.engine.abort(output.request_id)

    def _give_up(self, error: Exception) -> None:
        """End every request after a failure of the engine itself, and start over with an empty engine."""
        with self._lock:
            entries = list(self._listeners.values())
            self._listeners.clear()
            self._thread = None
            atexit.unregister(self._stop_at_exit)
            self.engine = self.engine.started_anew()
        failure = ModelError("the engine failed and was started anew; the log tells why")
        failure.__cause__ = error
        for _, on_failure in entries:
            on_failure(failure)

    def _stop_at_exit(self) -> None:
        """Stop the thread between two operations, whatever it has left: nobody will ask for it any more."""
        thread = self._thread
        if thread is None or thread.ident is None:
            return
        leave = ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), leave)
        thread.join()
