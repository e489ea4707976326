"""A small archive on this machine: TAP with jobs and VOTable answers, DataLink with zipped csv, and faults on demand.

It knows two hundred sources and answers exactly the queries that xpkern asks, by reading their conditions.
"""

from __future__ import annotations

import io
import re
import threading
import time
import urllib.parse
import zipfile
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from astropy.io.votable import from_table
from astropy.io.votable.tree import Info
from astropy.table import MaskedColumn, Table

SOURCES = 200


@dataclass
class Sky:
    """What the archive holds, what it is asked, and how it fails.

    Attributes
    ----------
    faults : deque of str
        What goes wrong with the next requests: "html", "500", "hang up", "silence", "xml", "text", "nothing", ""; of
        spectra also "cut", a zip file that breaks off.
    row_limit : int
        Rows of an answer at most.
    lost : str
        What is lost of the next answers with spectra, though they exist: "", "some" or "all".
    silence, job_seconds : float
        How long nothing comes, and how long the next query takes [s].
    """

    rng: np.random.Generator
    faults: deque[str] = field(default_factory=deque)
    row_limit: int = 10_000
    lost: str = ""
    silence: float = 0.0
    job_seconds: float = 0.0
    queries: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    jobs: dict[str, tuple[str, str]] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = SOURCES
        self.source_id = np.sort(self.rng.choice(2**40, n, replace=False).astype(np.int64)) + (1 << 43)
        self.ra, self.dec = self.rng.uniform(179, 181, n), self.rng.uniform(29, 31, n)
        self.with_two_mass = self.rng.uniform(size=n) < 0.7
        self.with_spectra = self.rng.uniform(size=n) < 0.95

    def rows_of(self, query: str) -> np.ndarray:
        """Rows that the conditions of a query of ours leave, cut off as it says."""
        keep = np.ones(SOURCES, bool)
        if circle := re.search(r"CIRCLE\('ICRS', (\S+), (\S+), (\S+)\)\)", query):
            ra, dec, radius = (float(number) for number in circle.groups())
            keep &= np.hypot((self.ra - ra) * np.cos(np.radians(dec)), self.dec - dec) < radius
        for first, last in re.findall(r"BETWEEN (\d+) AND (\d+)", query):
            keep &= (self.source_id >= int(first)) & (self.source_id <= int(last))
        for after in re.findall(r"g\.source_id > (-?\d+)", query):
            keep &= self.source_id > int(after)
        if listed := re.search(r"IN \(([\d, ]+)\)", query):
            keep &= np.isin(self.source_id, [int(number) for number in listed[1].split(",")])
        if "tmass" in query:
            keep &= self.with_two_mass
        top = re.search(r"TOP (\d+)", query)
        return np.flatnonzero(keep)[: int(top[1]) if top else SOURCES]

    def answer(self, query: str) -> bytes:
        """The VOTable of a query."""
        rows = self.rows_of(query)
        truncated = len(rows) > self.row_limit
        rows = rows[: self.row_limit]
        table = Table({"source_id": self.source_id[rows]})
        if "tmass" in query:
            table["j_m"] = MaskedColumn(rows + 0.5, mask=rows % 5 == 0)
            table["ph_qual"] = np.array(["AAB"] * len(rows), dtype="U3")
        elif "parallax" in query:
            table["ra"], table["dec"] = self.ra[rows], self.dec[rows]
            table["parallax"] = MaskedColumn(rows * 0.01, mask=rows % 7 == 0)
        document = from_table(table)
        status = "OVERFLOW" if truncated else "OK"
        document.resources[0].type = "results"
        document.resources[0].infos.append(Info(name="QUERY_STATUS", value=status))
        stream = io.BytesIO()
        document.to_xml(stream)
        return stream.getvalue()

    def spectra(self, source_ids: list[int]) -> bytes:
        """The zip file of DataLink: in two tables, as it may come."""
        lines = [
            f'{number},"(1.0, 2.0)",{number % 1000}\n'
            for number in source_ids
            if self.with_spectra[np.searchsorted(self.source_id, number)]
        ]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            if self.lost == "all":
                archive.writestr("readme.txt", "no data")
            parts = {"": (lines[::2], lines[1::2]), "some": (lines[4:],), "all": ()}[self.lost]
            for number, part in enumerate(parts):
                archive.writestr(f"XP_{number}.csv", "source_id,bp_coefficients,solution_id\n" + "".join(part))
        return stream.getvalue()


class _Handler(BaseHTTPRequestHandler):
    sky: Sky
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of an answer are two packets: the second would wait for 40 ms

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        values = {name: value[0] for name, value in urllib.parse.parse_qs(body).items()}
        if self.path == "/data":
            if not self._fault():
                self.sky.asked["spectra"] += 1
                source_ids = [int(number) for number in values["ID"].split(",")]
                self._send(self.sky.spectra(source_ids), "application/zip")
        elif self.path == "/tap/async":
            if not self._fault():
                number = str(len(self.sky.jobs))
                self.sky.jobs[number] = (values["QUERY"], "PENDING")
                self.sky.queries.append(values["QUERY"])
                self._redirect(f"/tap/async/{number}")
        elif match := re.fullmatch(r"/tap/async/(\d+)/phase", self.path):
            query, _ = self.sky.jobs[match[1]]
            failed = "no such column" in query or "SELEKT" in query
            self.sky.jobs[match[1]] = (query, "ERROR" if failed else "COMPLETED")
            self.sky.ends[match[1]] = time.monotonic() + self.sky.job_seconds
            self.sky.job_seconds = 0.0
            self._redirect(f"/tap/async/{match[1]}")
        elif not self._fault():
            self.send_error(404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/tap/async/(\d+)", path):
            query, phase = self.sky.jobs[match[1]]
            if time.monotonic() < self.sky.ends.get(match[1], 0.0):
                phase = "EXECUTING"
            self._send(_job(match[1], query, phase, self._base()).encode(), "text/xml")
        elif match := re.fullmatch(r"/tap/async/(\d+)/results/result", path):
            if not self._fault():
                self.sky.asked["query"] += 1
                self._send(self.sky.answer(self.sky.jobs[match[1]][0]), "application/x-votable+xml")
        elif path != "/tap/async" or not self._fault():
            self.send_error(404)

    def do_DELETE(self) -> None:
        self.sky.jobs[self.path.rsplit("/", 1)[1]] = ("", "DELETED")
        self._redirect("/tap/async")

    def _base(self) -> str:
        return f"http://{self.headers['Host']}"

    def _fault(self) -> bool:
        fault = self.sky.faults.popleft() if self.sky.faults else ""
        if fault == "html":
            self._send(b"<html><body>Please log in</body></html>", "text/html")
        elif fault == "500":
            self.send_error(500, "out of order")
        elif fault == "xml":
            self._send(b'<?xml version="1.0"?><status>busy</status>', "text/xml")
        elif fault == "text":
            self._send(b"busy, come back later", "text/plain")
        elif fault == "nothing":
            self._send(b"", "text/plain")
        elif fault == "cut":
            self._send(self.sky.spectra(self.sky.source_id[:9].tolist())[:70], "application/zip")
        elif fault in ("hang up", "silence"):
            time.sleep(self.sky.silence if fault == "silence" else 0.0)
            self.close_connection = True  # without a word
        return bool(fault)

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, path: str) -> None:
        self.send_response(303)
        self.send_header("Location", self._base() + path)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


def _job(number: str, query: str, phase: str, base: str) -> str:
    error = (
        '<uws:errorSummary type="fatal" hasDetail="false"><uws:message>no such column: wrong</uws:message>'
        "</uws:errorSummary>"
        if phase == "ERROR"
        else ""
    )
    result = (
        f'<uws:results><uws:result id="result" xlink:href="{base}/tap/async/{number}/results/result"/></uws:results>'
        if phase == "COMPLETED"
        else "<uws:results/>"
    )
    return (
        '<?xml version="1.0"?><uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1">'
        f"<uws:jobId>{number}</uws:jobId><uws:phase>{phase}</uws:phase>{result}{error}</uws:job>"
    )


@contextmanager
def archive_server(sky: Sky) -> Iterator[str]:
    """The address of the archive while it is up."""
    handler = type("Handler", (_Handler,), {"sky": sky})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
