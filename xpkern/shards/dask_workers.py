"""Units of work dealt out by Dask: the workers need the same files under the same names, and xpkern."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence

from xpkern.errors import InputError
from xpkern.shards.work import Unit
from xpkern.shards.workers import Outcome, attempt


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
        from distributed import as_completed

        futures = {
            client.submit(attempt, unit, settings_digest, key=f"xpkern-{unit.name}-{settings_digest}", pure=False): unit
            for unit in units
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                outcome = future.result() if error is None else Outcome(futures[future], error=f"its worker: {error}")
                if outcome.record is not None:
                    on_progress(outcome.record["rows"])
                future.release()
                yield outcome
        finally:
            client.cancel(list(futures))

    with client:
        yield attempts
