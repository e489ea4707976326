"""``xpkern run``, ``status``, ``rerun`` and ``collect``: a survey's files into shards, and these into a catalogue."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpkern.cli.catalog import positive_integer
from xpkern.errors import about_file
from xpkern.processes import server_of_processes

if TYPE_CHECKING:
    from xpkern.shards.ledger import Ledger
    from xpkern.shards.run import RunSummary
    from xpkern.shards.settings import RunSettings
    from xpkern.shards.work import Unit
    from xpkern.shards.workers import Outcome

#: Exit code of a run that made all it could, but some files have no shard; as of a catalogue with unusable rows.
PARTIAL = 3

#: Exit code of a run that was stopped by SIGTERM (the time limit of a batch system) or lost its Dask scheduler: start
#: it again and it goes on.
RESUME = os.EX_TEMPFAIL

SETTINGS = """\
a file of settings (survey.toml)
  spectra = "spectra/XpContinuousMeanSpectrum_*.csv.gz"        # names or patterns, from the folder of this file
  gaia_source = "gaia_source/GaiaSource_{range}.csv.gz"        # {range}: as in the name of the spectra; or one table
  output = "shards"                                            # folder: a shard for every file of spectra
  # optional, with their defaults: photometry (as gaia_source, or a list), model, layout = "default", sigma = "archive",
  # optimizer = "newton", starts = 4, engine = "auto", threads (of each process), attempts = 3
"""

EPILOG_RUN = f"""\
examples
  all files, one after the other, every core on each:
    xpkern run survey.toml
  four files side by side on one machine:
    xpkern run survey.toml --processes 4
  the third of ten parts, as one of ten jobs; tasks of a Slurm array find out their part by themselves:
    xpkern run survey.toml --part 3/10
  on a Slurm cluster, 40 jobs:
    xpkern run survey.toml --write-sbatch survey.sh --tasks 40 && sbatch survey.sh
  by the workers of a Dask scheduler:
    xpkern run survey.toml --dask tcp://scheduler:8786
  how far it is, what went wrong, and which cuts of the photometry lack their columns:
    xpkern status survey.toml

{SETTINGS}
what is written into the output's folder
  NAME.h5, NAME.diagnostics.h5, NAME.reasons.csv   a shard, as xpkern catalog writes it
  NAME.done.json     it is complete; what it was made of, and the SHA-256 of its files
  NAME.failed.json   there is no shard, and why
  log/               one line of JSON for each attempt
A run that was killed goes on where it was when it is started again, and several may work in the same folder.

exit code
  0    every file has its shard, or another process is making it
  3    some files have none: xpkern status says which and why
  {RESUME}   stopped by SIGTERM, or the Dask scheduler was lost: start it again
"""

EPILOG_RERUN = """\
examples
  try again what failed, after the disk was mended:
    xpkern rerun survey.toml --failed
  see first what would be made anew because the model is another one:
    xpkern rerun survey.toml --changed --dry-run
"""

EPILOG_STATUS = f"""\
examples
  how far a run is, from any machine that sees its folders; nothing is written:
    xpkern status survey.toml
  look every minute while it goes on:
    watch -n 60 xpkern status survey.toml

exit code
  0    nothing failed, whatever is left
  3    some files failed: which and why is said

{SETTINGS}"""

EPILOG_COLLECT = """\
examples
  one file, with its diagnostics beside it; the ending says the format:
    xpkern collect survey.toml -o catalog.h5
    xpkern collect survey.toml -o catalog.fits
    xpkern collect survey.toml -o catalog.parquet
  without copying a value: HDF5 datasets that refer to the shards, which must stay where they are:
    xpkern collect survey.toml --virtual -o catalog.h5
  a folder in the HATS layout, Parquet by HEALPix pixel, which LSDB opens:
    xpkern collect survey.toml -o catalog/
    python -c "import lsdb; print(lsdb.open_catalog('catalog').head())"

NAME.manifest.json (manifest.json in a folder) has the SHA-256 of each file and the range and mean of each column.

exit code
  0    all files of the survey are in it
  3    some have no shard yet; the others are in it
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    run = _parser(
        commands, common, "run", "make a survey's catalogue, a shard for every file of spectra; resumable", EPILOG_RUN
    )
    _add_running_options(run)
    run.add_argument(
        "--write-sbatch",
        metavar="FILE.sh",
        help="only write a batch script for Slurm: an array of --tasks jobs, each with its part of the files",
    )
    run.add_argument(
        "--tasks",
        type=positive_integer,
        default=10,
        metavar="N",
        help="jobs of that array, no more than there are files; default: 10",
    )
    run.set_defaults(run=run_command, failed=False, changed=False, dry_run=False)
    rerun = _parser(
        commands, common, "rerun", "the same, and again what failed or was made by other settings", EPILOG_RERUN
    )
    rerun.add_argument("--failed", action="store_true", help="try again files that failed")
    rerun.add_argument(
        "--changed",
        action="store_true",
        help="make anew shards of other settings, another model or version, or of an input that has changed",
    )
    rerun.add_argument("--dry-run", action="store_true", help="only say what would be done")
    _add_running_options(rerun)
    rerun.set_defaults(run=run_command, write_sbatch=None)
    status = _parser(
        commands, common, "status", "how far a survey run is: done, failed and why, left, rows/s", EPILOG_STATUS
    )
    status.set_defaults(run=status_command)
    collected = _parser(
        commands, common, "collect", "the shards of a run as one catalogue, by source_id", EPILOG_COLLECT
    )
    collected.add_argument(
        "-o", "--output", required=True, metavar="NAME", help="file to write, or folder for the HATS layout"
    )
    collected.add_argument(
        "--virtual",
        action="store_true",
        help="HDF5 that refers to the shards: takes no room, reads from the shards' files",
    )
    collected.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    collected.set_defaults(run=collect_command)


def _parser(commands: Any, common: argparse.ArgumentParser, name: str, text: str, epilog: str) -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("settings", metavar="survey.toml", help="the settings of the run")
    return parser


def _add_running_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", type=positive_integer, default=1, metavar="N", help="files worked on side by side; default: 1"
    )
    parser.add_argument(
        "--part",
        "--shard",
        type=_part,
        metavar="K/N",
        help="only the K-th of N parts of the files; default: what Slurm's array and step say, or all",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="let the workers of this Dask scheduler make the shards; they need the same files under the same names",
    )


def _part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    if (
        len(numbers) != 2
        or not all(number.isdigit() for number in numbers)
        or not 1 <= int(numbers[0]) <= int(numbers[1])
    ):
        raise argparse.ArgumentTypeError(f"{text} is not K/N with K from 1 to N")
    return int(numbers[0]), int(numbers[1])


def run_command(options: argparse.Namespace) -> int:
    """Make shards; return the exit code."""
    try:
        return _run(options)
    except KeyboardInterrupt as error:  # before the first file, while libraries are read, or after the last one
        if getattr(error, "number", signal.SIGINT) != signal.SIGTERM:
            raise
        print("xpkern: stopped by SIGTERM: the same command goes on", file=sys.stderr)
        return RESUME


def _run(options: argparse.Namespace) -> int:
    if options.processes > 1:
        server_of_processes()  # it reads its libraries while this process reads its own
    from tqdm import tqdm

    from xpkern.shards.dask_workers import SchedulerLost
    from xpkern.shards.ledger import Ledger, State
    from xpkern.shards.run import RunSummary, part_of_batch_job, run_survey
    from xpkern.shards.settings import load_settings
    from xpkern.shards.slurm import write_batch_script

    settings = load_settings(options.settings)
    if options.write_sbatch is not None:
        jobs = write_batch_script(Path(options.write_sbatch), settings, options.tasks)
        fewer = f", as there are no more files, and not {options.tasks:,}" if jobs < options.tasks else ""
        print(f"{options.write_sbatch}: {jobs:,} jobs{fewer}; edit it as your cluster wants it, then sbatch it")
        return 0
    part, parts = options.part or part_of_batch_job()
    again = tuple(
        state for state, wanted in ((State.FAILED, options.failed), (State.CHANGED, options.changed)) if wanted
    )
    if options.dry_run:
        _print_plan(Ledger.of(settings, part=part, parts=parts), (State.LEFT, *again))
        return 0
    summary = RunSummary()
    started = time.perf_counter()
    to_do: int | None = None
    with (
        tqdm(unit=" stars", unit_scale=True, desc="xpkern run", disable=None, leave=False) as progress,
        _dealing(options.dask) as attempts,
    ):

        def on_start(ledger: Ledger, units: list[Unit]) -> None:
            nonlocal to_do
            to_do = len(units)
            whole = f", part {part} of {parts}" if parts > 1 else ""
            say(f"{len(units):,} of {len(ledger.units):,} files to do{whole}: {settings.output_folder}")

        def on_unit(outcome: Outcome) -> None:
            progress.set_postfix(files=f"{len(summary.done) + len(summary.failed)}/{to_do}")
            if outcome.error:
                say(f"failed: {about_file(outcome.unit.spectra, outcome.error)}")
            elif progress.disable and outcome.record is not None:
                rate = outcome.record["rows"] / max(outcome.seconds, 1e-3)
                say(f"done: {outcome.unit.name}: {outcome.record['rows']:,} stars, {rate:,.0f} stars/s")

        def say_what_is_left(reason: str) -> None:
            left = (to_do or 0) - len(summary.done) - len(summary.failed)
            print(
                f"xpkern: {reason}; {len(summary.done):,} shards were made, {left:,} files are left: the same command "
                "goes on",
                file=sys.stderr,
            )

        def say(text: str) -> None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

        try:
            run_survey(
                settings,
                part=part,
                parts=parts,
                processes=options.processes,
                again=again,
                on_start=on_start,
                on_progress=progress.update,
                on_unit=on_unit,
                attempts=attempts,
                summary=summary,
            )
        except KeyboardInterrupt as error:
            if to_do is None:
                raise
            number = getattr(error, "number", signal.SIGINT)
            say_what_is_left(f"stopped by {signal.Signals(number).name}")
            if number == signal.SIGTERM:
                return RESUME
            raise
        except SchedulerLost as error:
            if getattr(options, "debug", False):
                raise
            say_what_is_left(str(error))
            return RESUME
    return _report(summary, time.perf_counter() - started)


def _dealing(dask: str | None) -> contextlib.AbstractContextManager[Any]:
    """How units are tried where it is not this process that does it."""
    if dask is None:
        return contextlib.nullcontext()
    from xpkern.shards.dask_workers import attempts_by_dask

    return attempts_by_dask(dask)


def _report(summary: RunSummary, seconds: float) -> int:
    rate = summary.rows / max(seconds, 1e-3)
    print(
        f"{len(summary.done):,} shards, {summary.rows:,} stars, {summary.fitted:,} fitted in {seconds:.1f} s "
        f"({rate:,.0f} stars/s)"
    )
    _print_not_applied(summary.not_applied)
    if summary.elsewhere:
        print(f"{len(summary.elsewhere):,} files are being worked on by another process")
    if not summary.failed:
        return 0
    name, error = next(iter(summary.failed.items()))
    print(
        f"xpkern: {len(summary.failed):,} files have no shard; the first: {name}: {error}. Once an input or setting is "
        "mended they are tried again; xpkern rerun --failed tries them in any case",
        file=sys.stderr,
    )
    return PARTIAL


def _print_plan(ledger: Ledger, states: tuple[Any, ...]) -> None:
    for unit, state in zip(ledger.units, ledger.states, strict=True):
        if state in states:
            print(f"{state.value:<8} {unit.spectra}")
    count = sum(state in states for state in ledger.states)
    print(f"{count:,} of {len(ledger.units):,} files would be worked on")


def status_command(options: argparse.Namespace) -> int:
    """Say how far the run is; return the exit code."""
    from xpkern.shards.ledger import Ledger, State
    from xpkern.shards.pace import Pace
    from xpkern.shards.settings import load_settings

    settings = load_settings(options.settings)
    ledger = Ledger.of(settings)
    count = ledger.count()
    print(f"{len(ledger.units):,} files of spectra; shards in {settings.output_folder}")
    print(f"  {count[State.DONE]:>8,}  done: {ledger.total('rows'):,} stars, {ledger.total('fitted'):,} fitted")
    for state, meaning in (
        (State.FAILED, "failed"),
        (State.CHANGED, "made by other settings, another model or version, or of an input that has changed"),
        (State.LEFT, "left"),
    ):
        if count[state]:
            print(f"  {count[state]:>8,}  {meaning}")
    pace = Pace.of(settings.output_folder)
    if pace is not None:
        left = 0
        for unit in ledger.of_state(State.LEFT):
            with contextlib.suppress(OSError):  # a link that leads nowhere; a run will say so
                left += unit.spectra.stat().st_size
        print(f"pace: {pace.stars_per_second:,.0f} stars/s{pace.time_for(left)}")
    _print_bits(settings, ledger)
    for unit, state, record in zip(ledger.units, ledger.states, ledger.records, strict=True):
        if state is State.FAILED and record is not None:
            print(f"failed: {about_file(unit.spectra, record['error'])} (attempts: {record['attempts']})")
    return PARTIAL if count[State.FAILED] else 0


def _print_bits(settings: RunSettings, ledger: Ledger) -> None:
    from xpkern.catalog.flags import MEANING as MEANING_OF_FLAG
    from xpkern.status import MEANING

    status, flags = ledger.totals("status"), ledger.totals("quality_flags")
    for bit, meaning in MEANING.items():
        if status[str(bit.name)]:
            print(f"  {status[str(bit.name)]:>12,}  status {int(bit)} {bit.name}: {meaning}")
    for flag, meaning in MEANING_OF_FLAG.items():
        if flags[str(flag.name)]:
            print(f"  {flags[str(flag.name)]:>12,}  quality_flags {int(flag)} {flag.name}: {meaning}")
    for name, count in ledger.totals("counts").items():
        print(f"  {count:>12,}  {name}")
    _print_not_applied(ledger.not_applied())


def _print_not_applied(shards: Counter[str]) -> None:
    """Say which cuts could not be applied to how many shards, and why: their catalogue has what these would remove."""
    for said, count in shards.items():
        print(f"  {count:>12,}  shards: {said}")


def collect_command(options: argparse.Namespace) -> int:
    """Write one catalogue; return the exit code."""
    from tqdm import tqdm

    from xpkern.shards.collect import collect
    from xpkern.shards.hats import collect_hats
    from xpkern.shards.settings import load_settings
    from xpkern.shards.virtual import collect_virtual

    settings = load_settings(options.settings)
    # a folder has no ending, or is marked as one: `catalog.csv` is the name of a file that cannot be written
    is_folder = Path(options.output).suffix == "" or options.output.endswith(os.sep)
    write = collect_hats if is_folder else collect
    if options.virtual:
        write = collect_virtual
    with tqdm(unit=" stars", unit_scale=True, desc="xpkern collect", disable=None, leave=False) as progress:
        summary = write(settings, options.output, overwrite=options.overwrite, on_rows=progress.update)
    print(
        f"{summary.shards:,} shards, {summary.rows:,} stars: {', '.join(str(path) for path in reversed(summary.files))}"
    )
    if not summary.in_order:
        print("xpkern: not in the order of source_id, as the files of spectra are not; without --virtual it is")
    if summary.duplicates:
        print(
            f"xpkern: {len(summary.duplicates):,} sources are in it more than once, as in the files of spectra; the "
            f"first: {summary.duplicates[0]}",
            file=sys.stderr,
        )
    if summary.missing:
        print(
            f"xpkern: {len(summary.missing):,} files of spectra have no whole shard; the first: {summary.missing[0]}",
            file=sys.stderr,
        )
        return PARTIAL
    return 0
