"""``xpkern flag``: confidences and quality flags of a catalogue, computed anew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpkern.errors import InputError

if TYPE_CHECKING:
    from xpkern.catalog.cuts import CutCounts

EPILOG = """\
examples
  with the classifiers of a model file (xpkern confidence train), in place; catalog.diagnostics.h5 must be beside it:
    xpkern flag catalog.h5 --model model.h5
  into another file, with distances, A(V), A(G), E(B-V) and M(G) added; the ending says the format:
    xpkern flag catalog.h5 --model model.h5 --derived -o flagged.fits
  a whole survey, a folder in the HATS layout (xpkern collect), in place or into another folder:
    xpkern flag catalog/ --model model.h5
  how many stars pass each cut, without writing anything; any catalogue, the published one and HATS folders, too:
    xpkern flag stellar_params_catalog_*.h5 --counts-only --json cuts.json

what is written
  catalogue and companion, together once both are complete. New are <parameter>_confidence, quality_flags, and of the
  status the bits EXTRAPOLATED and SECOND_MINIMUM: with the model of the fit what the fit itself would have written.
  A model without classifiers makes the confidences NaN and keeps bits 0-2 set.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "flag",
        help="confidences, quality flags and derived columns of a catalogue anew; how many stars pass each cut",
        description="Compute confidences and quality flags of a catalogue from its diagnostics companion, and count "
        "how many stars pass each cut (Table 3 of Zhang, Green & Rix 2023).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument(
        "catalog",
        nargs="+",
        metavar="CATALOG",
        help="a catalogue of xpkern in any format and layout, or a folder of xpkern collect",
    )
    parser.add_argument("--model", metavar="FILE", help="that it was fitted with; default: the one of xpkern")
    parser.add_argument("-o", "--output", metavar="FILE", help="the catalogue to write; default: the same name")
    parser.add_argument("--derived", action="store_true", help="add distance, ebv, a_v, a_g, m_g and their errors")
    parser.add_argument("--counts-only", action="store_true", help="count by the flags there are, and write nothing")
    parser.add_argument("--json", metavar="FILE.json", type=Path, help="write the counts there, too")
    parser.add_argument("--overwrite", action="store_true", help="replace output and counts if they exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Flag, or only count; print how many stars pass each cut; return the exit code."""
    from xpkern.catalog.cuts import count_cuts
    from xpkern.catalog.pending import refuse_taken
    from xpkern.cli.catalog import expand

    paths = list(expand(options.catalog))
    if options.json is not None:
        refuse_taken(options.json, paths, overwrite=options.overwrite)
    if options.counts_only:
        for name in ("model", "output", "derived"):
            if getattr(options, name):
                raise InputError(f"--{name} is for what --counts-only does not do")
        counts = count_cuts(paths)
    else:
        counts = _flag(paths, options)
    print("\n".join(counts.lines()))
    if options.json is not None:
        _write_json(options.json, counts)
        print(options.json)
    return 0


def _flag(paths: list[str], options: argparse.Namespace) -> CutCounts:
    from tqdm import tqdm

    from xpkern.catalog.flagging import flag_catalog
    from xpkern.model import load_model

    if len(paths) > 1:
        raise InputError("is one of several: flag them one after the other", file=paths[1])
    model, prior = load_model(options.model)
    # None: silent unless standard error is a terminal
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern flag", disable=None, leave=False) as progress:
        summary = flag_catalog(
            paths[0],
            options.output,
            model=model,
            prior=prior,
            derived=options.derived,
            overwrite=options.overwrite,
            on_progress=progress.update,
        )
    files = ", ".join(str(name) for name in reversed(summary.files.values()))
    print(f"{summary.rows:,} stars, flags of {summary.changed:,} changed: {files}")
    if model.confidence is None:
        print(
            "the model has no classifiers: confidences are unknown, and no star is confident; "
            "`xpkern confidence train CATALOG LABELS -o model.h5` makes them from labels of some of the stars, "
            "`xpkern flag CATALOG --model model.h5` judges by them"
        )
    return summary.cuts


def _write_json(path: Path, counts: CutCounts) -> None:
    from xpkern.catalog.pending import PendingFile

    with PendingFile(path) as partial:
        partial.write_text(json.dumps(counts.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
