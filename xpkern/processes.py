"""Processes that work side by side: where they come from, and what they have already read when they come.

They are forked from a server, a process of its own that has the libraries and has never had a thread of an engine's,
which a fork would not survive. So libraries are read once, not by each process, and while the command itself still
looks at what there is to do.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext


def server_of_processes() -> ForkServerContext:
    """What makes processes, as :func:`multiprocessing.get_context` returns it; the server is started if it is not.

    A process has the environment that the server had when it was started: the first time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xpkern.read_before"])
    multiprocessing.forkserver.ensure_running()
    return context
