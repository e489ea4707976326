"""Entry point of the ``xpkern`` command: its options, and what a user sees when something goes wrong."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from xpkern.cli import (
    catalog,
    compare,
    confidence,
    convert,
    demo,
    doctor,
    fetch,
    flag,
    import_model,
    labels,
    maps,
    match,
    predict,
    reddening,
    report,
    run,
    simulate,
    spectra,
    star,
    train,
)
from xpkern.errors import XpkernError
from xpkern.stopping import Interrupted, stopped_by_signals
from xpkern.version import __version__

DESCRIPTION = "Stellar parameters from Gaia XP spectra by a learned forward model of the spectrum."

EPILOG = """\
examples
  xpkern demo                        simulate a small survey, fit it, draw what came out; downloads nothing
  xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o catalog.h5
  xpkern flag catalog.h5 --model model.h5 --derived
  xpkern spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o spectra.fits
  xpkern star 4295806720 --spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o star/
  xpkern compare catalog.h5 stellar_params_catalog_*.h5
  xpkern map catalog.h5 -o dust.fits && xpkern map plot dust.fits
  xpkern report catalog.h5 --labels labels.fits -o report/
  xpkern fetch --region 'CIRCLE 180 30 1' -o region/
  xpkern match unwise unwise_*.fits --to gaia_source.h5 -o infrared.parquet
  xpkern convert XpContinuousMeanSpectrum_*.csv.gz -o compact/
  xpkern run survey.toml             a shard for every file of a survey; status, rerun, collect go with it
  xpkern predict --teff 5.77 --feh 0 --logg 4.44 --ext 0.1 --plx 10 --plot sun.png
  xpkern simulate --n 100000 --seed 1 -o survey/
  xpkern labels lamost=dr8_v2.0_LRS_stellar.fits hot_payne=hot_payne.fits.gz --source gaia_source.csv -o labels.fits
  xpkern train labels.fits --spectra XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv -o model.h5
  xpkern confidence train catalog.h5 labels.fits -o model.h5
  xpkern doctor                      what this installation can do on this machine

`xpkern COMMAND --help` explains a command.
"""

#: In the order of the help: stars, surveys of them, models, and the rest.
COMMANDS = (
    *(catalog, flag, star, spectra, compare, report, maps),
    *(fetch, match, convert, run),
    *(labels, reddening, train, confidence, import_model, predict),
    *(simulate, demo, doctor),
)

#: Exit codes: 1 for anything wrong with input or output, 2 for wrong options (argparse), 128 + the signal's number
#: when interrupted, as a shell reports it.
FAILED, WRONG_OPTIONS, BY_SIGNAL = 1, 2, 128


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    # both before and after the command's name; SUPPRESS keeps the command's default from undoing the former
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show a traceback when something goes wrong"
    )
    common.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="say on standard error what is read, used and written",
    )
    parser = argparse.ArgumentParser(
        prog="xpkern",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"xpkern {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands, common)
    return parser


def command_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Parsers of all commands, each before those of its own commands: what documents them asks for these.

    A command that does not declare its own commands to argparse names their parsers in an attribute ``further``.
    """
    declared = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    own = [command for action in declared for command in action.choices.values()]
    for command in [*own, *getattr(parser, "further", ())]:
        yield command
        yield from command_parsers(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; ``sys.argv[1:]`` when not given.

    Returns
    -------
    int
        Exit code: 0, or what :data:`FAILED` and its neighbours say.
    """
    _open_closed_streams()
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return WRONG_OPTIONS
    debug = getattr(options, "debug", False)
    try:
        with stopped_by_signals(), _logging(getattr(options, "verbose", False)):
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # the reader of our output went away, as `head` does; keep Python from complaining again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE
    except BaseException as error:
        if debug or isinstance(error, SystemExit):
            raise
        return _report(error)


def _open_closed_streams() -> None:
    """Let what is printed go nowhere where a shell has closed standard output or error: `>&-`, `2>&-`.

    Python has None for these, and the next file that is opened would get their place: what libraries of C print.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """What the library tells its log on standard error, if that is wanted."""
    logger, handler = logging.getLogger("xpkern"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("xpkern: %(message)s"))
    level = logger.level
    if verbose:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _report(error: BaseException) -> int:
    """Say in one line what went wrong and return the exit code."""
    code = FAILED
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        code = BY_SIGNAL + number
        message = f"interrupted by {signal.Signals(number).name}"
    elif isinstance(error, XpkernError):
        message = str(error)
    elif isinstance(error, OSError):
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    elif isinstance(error, MemoryError):
        message = f"out of memory: {error}"
    else:
        message = f"unexpected {type(error).__name__}: {error}; --debug shows where"
    print("xpkern: " + " ".join(message.split()), file=sys.stderr)
    return code
