"""``xpkern report``: a catalogue read once in blocks, everything of the report counted on the way, then drawn."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import BASIC_CUT
from xpkern.catalog.stream import CatalogReader
from xpkern.errors import InputError
from xpkern.model import load_model
from xpkern.report.catalogue_figures import Correlations, GoodnessOfFit, KielDiagram, Reliability, SkyDensity
from xpkern.report.cluster_figure import ClusterParallaxes, read_members
from xpkern.report.drawing import Drawing, Part, Tabulation, stars_text
from xpkern.report.flux_figures import FLUX_FIGURES
from xpkern.report.model_figures import model_figures
from xpkern.report.number_tables import FlagCounts, QualityCuts, ReferenceNumbers
from xpkern.report.page import Shown, page
from xpkern.report.reference import Reference, read_catalog_reference, read_label_reference
from xpkern.report.residual_figures import residual_figures
from xpkern.report.spectrum_plot import METADATA
from xpkern.report.stars import Stars
from xpkern.report.style import RC
from xpkern.version import __version__

if TYPE_CHECKING:
    from astropy.table import Table

    from xpkern.model import FluxModel

log = logging.getLogger(__name__)

#: Rows of a block, and of the sample that decides axes.
BLOCK_ROWS, SAMPLE_ROWS = 1 << 16, 1 << 16

#: Resolution of PNG files and of what is rasterised in PDF [dots per inch].
_DPI = 130

#: Colours of a PNG.
_COLOURS = 256

#: File that marks a folder as a report: only such a folder is ever replaced.
_MARK = "report.json"

_FIGURES, _DATA = "figures", "data"


def write_report(
    catalog: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    compare: Sequence[str | os.PathLike[str]] = (),
    members: str | os.PathLike[str] | None = None,
    distance: float | None = None,
    model: str | os.PathLike[str] | None = None,
    training: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a catalogue: a page, its figures as PNG and PDF, the data behind each as ECSV.

    Memory grows with the sizes of ``labels``, ``compare`` and ``members``, not with the catalogue's. Equal input gives
    equal bytes.

    Parameters
    ----------
    catalog : path-like or sequence of path-like
        What :class:`xpkern.catalog.stream.CatalogReader` reads; the diagnostics companion beside it is used if it is
        there.
    output : path-like
        Folder to make; it appears under its name once it is complete.
    labels : path-like, optional
        What other surveys measured, or a truth: :func:`xpkern.report.reference.read_label_reference`.
    compare : sequence of path-like
        Another catalogue of the same stars, or files of the published one.
    members, distance : path-like and float, optional
        List of a cluster's members and its distance [kpc].
    model : path-like, optional
        Model whose spectra, extinction curve and prior are drawn; the one that comes with the package otherwise.
    training : path-like, optional
        ``model.stars.h5`` of a training run.
    overwrite : bool
        Whether an earlier report of that name is replaced.

    Returns
    -------
    Path
        The page, ``index.html``.

    Raises
    ------
    InputError
        If a file cannot be read or lacks what it must have, only one of ``members`` and ``distance`` is given, or the
        folder exists and is no report or must not be replaced.
    """
    folder = Path(output)
    _refuse_taken(folder, overwrite)
    if (members is None) != (distance is None):
        raise InputError("a list of members needs a distance, and a distance a list", field="members")
    given = [catalog] if isinstance(catalog, (str, os.PathLike)) else list(catalog)
    reader = CatalogReader(given)
    diagnostics = _companion(reader, given)
    references: dict[str, Reference] = {}
    if labels is not None:
        references["labels"] = read_label_reference(labels)
    if compare:
        references["compare"] = read_catalog_reference(compare)
    cluster = None if members is None or distance is None else read_members(Path(members), distance)
    flux_model, prior = load_model(model)
    parts: list[Part] = [
        *(KielDiagram(), Reliability(), SkyDensity(), GoodnessOfFit(), QualityCuts(), FlagCounts(), Correlations()),
        *(part for name in ("labels", "compare") for part in _beside(name, references)),
        *(make() for make in FLUX_FIGURES),
        ClusterParallaxes(cluster),
        *model_figures(flux_model, prior, references, None if training is None else Path(training)),
    ]
    inputs = {*references, *(["members"] if cluster else []), *(["training"] if training is not None else [])}
    summary = _count(reader, diagnostics, parts, references, inputs)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (partial / _FIGURES).mkdir(parents=True)
        (partial / _DATA).mkdir()
        shown = [_show(part, summary.missing.get(part.name), partial) for part in parts]
        lead = _lead(reader, references, flux_model, model is not None)
        text = page(_title(given), lead, summary.tiles(), shown, reader.attributes)
        (partial / "index.html").write_text(text, encoding="utf-8")
        mark = {"xpkern_version": __version__, "stars": len(reader), "parts": [part.name for part in parts]}
        (partial / _MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        _take_name(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "index.html"


def _beside(name: str, references: Mapping[str, Reference]) -> list[Part]:
    """All that is shown beside a reference; the numbers alone stand for all where there is none."""
    numbers = ReferenceNumbers(name)
    return [numbers, *residual_figures(name)] if name in references else [numbers]


class _Summary:
    """Numbers of the whole catalogue, and what parts lack."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.stars = self.fitted = self.reliable = 0
        self.with_diagnostics = False

    def add(self, stars: Stars) -> None:
        self.stars += len(stars)
        if "quality_flags" in stars:
            self.reliable += int(stars.reliable.sum())
        if "teff" in stars:
            self.fitted += int(np.isfinite(stars.of("teff")).sum())

    def tiles(self) -> list[tuple[str, str]]:
        total = max(self.stars, 1)
        return [
            ("stars", f"{self.stars:,}"),
            ("with a solution", f"{100.0 * self.fitted / total:.1f} %"),
            (f"pass the basic cut (flags < {BASIC_CUT})", f"{100.0 * self.reliable / total:.1f} %"),
            ("diagnostics companion", "yes" if self.with_diagnostics else "none"),
        ]


def _count(
    reader: CatalogReader,
    diagnostics: CatalogReader | None,
    parts: Sequence[Part],
    references: Mapping[str, Reference],
    inputs: set[str],
) -> _Summary:
    """Let every part that has what it needs see all stars."""
    summary = _Summary()
    available = {*reader.names, *inputs, *(["residual"] if diagnostics is not None else [])}
    summary.missing = {part.name: text for part in parts if (text := part.missing(available)) is not None}
    summary.with_diagnostics = diagnostics is not None
    working = [part for part in parts if part.name not in summary.missing]
    wanted = dict.fromkeys(name for part in working for name in (*part.columns, *part.optional) if name in reader.names)
    columns = list(dict.fromkeys(["source_id", *wanted, *(n for n in ("teff", "quality_flags") if n in reader.names)]))
    sample = _sample(reader, columns, references)
    for part in working:
        part.begin(sample)
    del sample
    for block in _blocks(reader, diagnostics, columns):
        stars = Stars(block, references)
        summary.add(stars)
        for part in working:
            part.add(stars)
    log.info("counted %s", stars_text(summary.stars))
    return summary


def _companion(reader: CatalogReader, given: Sequence[str | os.PathLike[str]]) -> CatalogReader | None:
    """The diagnostics beside a catalogue, if they are there and have residuals of as many stars."""
    try:
        found = CatalogReader(given, table="diagnostics")
    except InputError as error:
        log.info("no residuals of fluxes: %s", error)
        return None
    return found if "residual" in found.names and len(found) == len(reader) else None


def _sample(reader: CatalogReader, columns: list[str], references: Mapping[str, Reference]) -> Stars:
    """Evenly spaced rows of the catalogue."""
    step = max(1, -(-len(reader) // SAMPLE_ROWS))
    parts: list[Mapping[str, NDArray[Any]]] = []
    first = 0
    for block in reader.blocks(columns, rows=BLOCK_ROWS):
        parts.append({name: values[-first % step :: step] for name, values in block.items()})
        first += len(block)
    rows = {name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0) for name in columns}
    return Stars(rows, references, first)


def _blocks(
    reader: CatalogReader, diagnostics: CatalogReader | None, columns: list[str]
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Blocks of the catalogue, with the residuals of its companion."""
    if diagnostics is None:
        yield from reader.blocks(columns, rows=BLOCK_ROWS)
        return
    pairs = zip(
        reader.blocks(columns, rows=BLOCK_ROWS),
        diagnostics.blocks(["source_id", "residual"], rows=BLOCK_ROWS),
        strict=True,
    )
    first = 0
    for block, companion in pairs:
        if not np.array_equal(block["source_id"], companion["source_id"]):
            file = str(diagnostics.paths[0])
            raise InputError("its stars are not those of the catalogue", file=file, row=first + 1, field="source_id")
        yield block | {"residual": companion["residual"]}
        first += len(block)


def _show(part: Part, missing: str | None, folder: Path) -> Shown:
    """Draw a part, write its files, and say what the page needs of it."""
    why_not = f"needs {missing}" if missing is not None else part.nothing()
    if why_not is not None:
        return Shown(part.name, part.section, part.title, "", {}, why_not=why_not)
    links = {}
    image = rows = None
    width = 10.0
    if isinstance(part, Drawing):
        image, pdf = _render(part)
        width = part.size[0]
        for ending, content in (("png", image), ("pdf", pdf)):
            (folder / _FIGURES / f"{part.name}.{ending}").write_bytes(content)
            links[ending.upper()] = f"{_FIGURES}/{part.name}.{ending}"
    elif isinstance(part, Tabulation):
        rows = part.rows()
    _write_data(part.table(), folder / _DATA / f"{part.name}.ecsv")
    links["ECSV"] = f"{_DATA}/{part.name}.ecsv"
    log.info("drawn: %s", part.title)
    return Shown(part.name, part.section, part.title, part.caption(), links, image, rows, width=width)


def _write_data(table: Table, path: Path) -> None:
    table.write(path, format="ascii.ecsv")


def _render(part: Drawing) -> tuple[bytes, bytes]:
    """A figure as PNG and as PDF."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    drawn, png, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with rc_context(RC):
        figure = Figure(figsize=part.size, dpi=_DPI, layout="constrained")
        part.draw(figure)
        figure.savefig(drawn, format="png", metadata=METADATA[".png"])
        figure.set_layout_engine("none")  # where everything stands is known now
        figure.savefig(pdf, format="pdf", metadata=METADATA[".pdf"])
    # a figure has few colours: with a palette it takes a third of the bytes, and the page is for phones, too
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(png, format="PNG", optimize=True)
    return png.getvalue(), pdf.getvalue()


def _title(given: Sequence[str | os.PathLike[str]]) -> str:
    more = f" and {len(given) - 1} more" if len(given) > 1 else ""
    return (Path(given[0]).name or str(given[0])) + more


def _lead(reader: CatalogReader, references: Mapping[str, Reference], model: FluxModel, is_given: bool) -> str:
    """A sentence on what is compared, and whether the model drawn is the catalogue's."""
    said = [f"A catalogue of {stars_text(len(reader))}"]
    for name, what in (("labels", "labels"), ("compare", "the catalogue")):
        if name in references:
            found = references[name]
            repeated = f"; {found.repeated:,} rows of sources that occur before left out" if found.repeated else ""
            said.append(f"beside {what} {found.name} ({stars_text(len(found))}{repeated})")
    lead = ", ".join(said) + "."
    digest = reader.attributes.get("model_digest")
    if digest is not None and str(digest) != model.digest:
        drawn = "the one given" if is_given else "the one that comes with xpkern"
        lead += f" The model drawn below is {drawn}, not the one that made the catalogue (--model draws another)."
    return lead


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError("is a file; the report is a folder", file=str(folder))
    if not (folder / _MARK).is_file() and any(folder.iterdir()):
        raise InputError("exists and is no report: choose another name", file=str(folder))
    if not overwrite:
        raise InputError("exists; --overwrite (overwrite=True) replaces it", file=str(folder))


def _take_name(partial: Path, folder: Path) -> None:
    """Give a complete folder its name; what stood there is gone only then."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    os.replace(folder, aside)
    try:
        os.replace(partial, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)
