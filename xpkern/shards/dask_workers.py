"""Units of work dealt out by Dask: the workers need the same files under the same names, and xpkern."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence

from xpkern.errors import InputError, XpkernError
from xpkern.shards.work import Unit
from xpkern.shards.workers import Outcome, attempt


class SchedulerLost(XpkernError):
    """The scheduler has died, or dropped the units of the run: what is done stays, and another run goes on."""


@contextlib.contextmanager
def attempts_by_dask(
    address: str,
) -> Iterator[Callable[[Sequence[Unit], str, Callable[[int], object]], Generator[Outcome, None, None]]]:
    """How a run tries its units on the workers of a Dask scheduler, while there is a connection to that.

    Parameters
    ----------
    address : str
        Of the scheduler, ``tcp://host:8786``.

    Yields
    ------
    callable
        For :func:`xpkern.shards.run_survey`. A worker that dies costs its unit an attempt. When the run ends early, its
        units are cancelled; those at work are finished by their workers, and count.

    Raises
    ------
    InputError
        If Dask is not installed, or no scheduler answers.
    SchedulerLost
        While outcomes are asked for: if the scheduler has died or dropped the units.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError("dask.distributed is not installed: pip install 'xpkern[survey]'", field="dask") from None
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise InputError(f"no scheduler answers at {address}: {error}", field="dask") from None

    def attempts(
        units: Sequence[Unit], settings_digest: str, on_progress: Callable[[int], object]
    ) -> Generator[Outcome, None, None]:
        from distributed import CancelledError, as_completed

        lost = SchedulerLost(f"the Dask scheduler at {address} was lost")
        if client.status == "closed":  # while the run waited to try again
            raise lost
        futures = {
            client.submit(attempt, unit, settings_digest, key=f"xpkern-{unit.name}-{settings_digest}", pure=False): unit
            for unit in units
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                try:
                    outcome = (
                        future.result() if error is None else Outcome(futures[future], error=f"its worker: {error}")
                    )
                except (CancelledError, OSError) as why:  # of the connection: what a unit raises is an outcome
                    raise lost from why
                if outcome.record is not None:
                    on_progress(outcome.record["rows"])
                future.release()
                yield outcome
        finally:
            client.cancel(list(futures))

    with _without_tracebacks(), client:  # it tells of what it lost until it is closed
        yield attempts


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep Dask's client from printing how it failed to find a lost scheduler again: that is told in a line."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
