"""Ctrl-C waits until an update of weights is done: half of one would leave a pattern without its values."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def uninterrupted(function: Callable) -> Callable:
    """``function``, which signals that raise exceptions from Python cannot leave half done: they are handled after it.

    Python runs their handlers in the main thread, between two steps of any function there; other threads see none.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        arrived = []
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
        try:
            for number in handlers:
                signal.signal(number, lambda *signal: arrived.append(signal))
            return function(*args, **kwargs)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for number, frame in arrived[:1]:
                handlers[number](number, frame)

    return run
