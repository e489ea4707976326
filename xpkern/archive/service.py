"""An archive: queries as jobs of its TAP service, spectra from its DataLink; tried again when it stumbles."""

from __future__ import annotations

import io
import math
import re
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from xpkern.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

#: ESA's Gaia archive.
TAP_URL, DATA_URL = "https://gea.esac.esa.int/tap-server/tap", "https://gea.esac.esa.int/data-server/data"

#: How long [s] a job that is still running is left alone at most.
LONGEST_PAUSE = 20.0

#: How long [s] the archive may be silent, unless told otherwise: it packs a piece's spectra before it sends a byte.
TIMEOUT = 300.0

Answer = TypeVar("Answer")


@dataclass
class Archive:
    """An archive with a TAP service and a DataLink for spectra.

    Attributes
    ----------
    tap_url, data_url : str
    release : str
        As DataLink calls it.
    attempts : int
        How often something is asked before its failure counts.
    first_pause : float
        Seconds before the second attempt; twice as many before each further one.
    timeout : float
        Seconds that the archive may be silent while it is connected to or answers; a query runs as a job, which may
        take as long as it likes.
    tell : callable
        Told of attempts that failed.

    Raises
    ------
    InputError
        If an address is none, or the timeout no time.
    """

    tap_url: str = TAP_URL
    data_url: str = DATA_URL
    release: str = "Gaia DR3"
    attempts: int = 6
    first_pause: float = 5.0
    timeout: float = TIMEOUT
    tell: Callable[[str], object] = field(default=lambda text: None)

    def __post_init__(self) -> None:
        for url in (self.tap_url, self.data_url):
            try:
                parts = urlsplit(url)
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError("no address of a server: http:// or https:// and its name", file=repr(url))
        if not 0.0 < self.timeout < math.inf:
            raise InputError(f"{self.timeout:g} is not a number of seconds to wait", field="timeout")

    def query(self, adql: str) -> tuple[Table, bool]:
        """Run a query.

        Parameters
        ----------
        adql : str

        Returns
        -------
        table : astropy.table.Table
        truncated : bool
            Whether the archive has cut it off at its own limit of rows.

        Raises
        ------
        InputError
            If the archive refuses the query, at once; if it does not answer or answers nonsense, after all attempts.
        """
        return self._again(lambda: self._query(adql), self.tap_url)

    def spectra(self, source_ids: Sequence[int]) -> bytes:
        """XP continuous spectra of some sources, as csv.

        Parameters
        ----------
        source_ids : sequence of int
            At most 5,000 by the rules of ESA's archive.

        Returns
        -------
        bytes
            One file of csv; empty if none of them has a spectrum there.

        Raises
        ------
        InputError
            As :meth:`query`.
        """
        return self._again(lambda: self._spectra(source_ids), self.data_url)

    def _query(self, adql: str) -> tuple[Table, bool]:
        import pyvo
        import requests

        with self._session() as session, warnings.catch_warnings():  # what it warns of is asked for below
            warnings.simplefilter("ignore")
            service = pyvo.dal.TAPService(self.tap_url, session=session)
            job = None
            try:
                job = service.submit_job(adql)
                job.run()
                _wait(job, session)
                job.raise_if_error()
                result = job.fetch_result()
            except requests.RequestException:
                raise
            except (pyvo.dal.DALFormatError, ValueError, IndexError):  # what is no XML, and what is no VOTable
                raise _Nonsense(f"no whole XML of a job or a VOTable but {_described(session.last)}") from None
            finally:
                _forget(job)
        infos = [info for resource in result.votable.resources for info in resource.infos]
        truncated = any(info.name == "QUERY_STATUS" and str(info.value).upper() == "OVERFLOW" for info in infos)
        return result.to_table(), truncated

    def _spectra(self, source_ids: Sequence[int]) -> bytes:
        wanted = {
            "RETRIEVAL_TYPE": "XP_CONTINUOUS",
            "DATA_STRUCTURE": "RAW",
            "FORMAT": "csv",
            "RELEASE": self.release,
            "USE_ZIP_ALWAYS": "true",
            "VALID_DATA": "true",
            "ID": ",".join(str(int(number)) for number in source_ids),
        }
        with self._session() as session:
            response = session.post(self.data_url, data=wanted)
        if response.status_code in (400, 404):
            raise InputError(f"{response.status_code}: {_described(response.content)}", file=self.data_url)
        response.raise_for_status()
        try:
            with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
                tables = [archive.read(name) for name in archive.namelist() if name.lower().endswith(".csv")]
        except (zipfile.BadZipFile, zlib.error, EOFError):
            raise _Nonsense(f"no whole zip file but {_described(response.content)}") from None
        return joined(tables)

    def _session(self) -> Any:
        """A session whose answers are read whole: pyvo reads from the connection, and leaves it open."""
        import requests

        timeout = self.timeout

        class Session(requests.Session):
            last = b""

            def request(self, *arguments: Any, **options: Any) -> Any:
                response = super().request(*arguments, **{**options, "timeout": timeout, "stream": False})
                self.last = response.content
                if response.ok and _is_page(self.last):  # pyvo takes one for a job without a state
                    raise _Nonsense(f"no data but {_described(self.last)}")
                response.raw = _WholeAnswer(self.last)
                return response

        return Session()

    def _again(self, ask: Callable[[], Answer], url: str) -> Answer:
        """What is asked for; tried again after failures that may pass."""
        try:
            import pyvo
            import requests
        except ImportError as error:
            raise InputError(f"{error.name} is not installed: pip install 'xpkern[survey]'") from None
        passing = (
            pyvo.dal.DALServiceError,
            requests.RequestException,
            OSError,
            _Nonsense,
        )
        pause = self.first_pause
        for attempt in range(1, self.attempts + 1):
            try:
                return ask()
            except pyvo.dal.DALQueryError as error:
                raise InputError(f"the archive refuses the query: {_first_line(str(error))}", file=url) from None
            except passing as error:
                reason = _first_line(str(error)) or type(error).__name__
                if attempt == self.attempts:
                    raise InputError(f"no usable answer after {attempt} attempts: {reason}", file=url) from None
                self.tell(f"{url}: {reason}; trying again in {pause:g} s")
                time.sleep(pause)
                pause *= 2
        raise AssertionError("not reached")


class _Nonsense(InputError):
    """An answer that is not what was asked for, as the page of a proxy that wants a password."""


class _WholeAnswer(io.BytesIO):
    """The body of an answer, to be read as from a connection."""

    def read(self, size: int | None = -1, /, *, decode_content: bool = True) -> bytes:
        return super().read(size)


def joined(tables: Sequence[bytes]) -> bytes:
    """Tables of csv with the same columns as one; raises an InputError if they differ, or lack ``source_id``."""
    if not tables:
        return b""
    header = tables[0].partition(b"\n")[0].strip()
    if b"source_id" not in header:
        raise _Nonsense(f"a table without source_id but {_described(header)}")
    rows = []
    for table in tables:
        names, _, rest = table.partition(b"\n")
        if names.strip() != header:
            raise _Nonsense("tables of spectra with different columns")
        rows.append(rest if not rest or rest.endswith(b"\n") else rest + b"\n")
    return b"".join([header, b"\n", *rows])


def _wait(job: Any, session: Any) -> None:
    """Ask how a job stands until it has ended: to be told when it has would take longer than one answer may."""
    pause = 0.1
    while (phase := job.phase) not in ("COMPLETED", "ERROR", "ABORTED"):
        if phase not in ("PENDING", "QUEUED", "EXECUTING", "UNKNOWN"):
            state = f"the job is {phase}" if phase else f"no state of the job but {_described(session.last)}"
            raise _Nonsense(state)
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)


def _forget(job: Any) -> None:
    """Remove a job from the archive, whose room for them is limited; no matter if that fails, or there is none."""
    try:
        job.delete()
    except Exception:
        return


def _first_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _is_page(answer: bytes) -> bool:
    head = answer[:1000].lower()
    return b"<html" in head or b"<!doctype html" in head


def _described(answer: bytes) -> str:
    """What a server has answered, in some words."""
    if not answer.strip():
        return "an empty answer"
    if answer.startswith(b"PK"):  # a whole one is not described
        return f"a truncated or damaged one of {len(answer):,} bytes"
    text = answer[:20_000].decode("utf-8", "replace")
    if not _is_page(answer):
        return repr(_first_line(text))
    text = re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
    return f"a web page (HTML): {_first_line(text)!r}"
