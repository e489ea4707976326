"""Command line of the benchmarks: ``python -m bench [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from bench.harness import machine, pinned
from xpkern.engine import get_engine

#: Share of the CPU below which somebody else was using it.
QUIET = 0.95

RESULTS = Path(__file__).parent / "results" / "local"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    from bench.benchmarks import BENCHMARKS  # and the libraries of all peers

    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Every figure on one pinned core, beside its peer in the same run; results as text and JSON.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                "benchmarks:",
                *(f"  {name:10s} {function.__doc__}" for name, (function, _) in BENCHMARKS.items()),
                "",
                "A GPU has a suite of its own: python -m bench gpu --help.",
                "What code costs that a GPU's processors have no room for: python -m bench code --help.",
                "What is predicted for one, by the waits in machine code: python -m bench waits --help.",
                "Accuracy on real stars beside other methods: python -m bench real_stars --help.",
                "The stars come from xpkern's own simulator, but for real, curve and noise (160 MB, once); simulate,",
                "atmospheres and confusion download 53 MB of these.",
            ]
        ),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}, or all (default)")
    parser.add_argument("--stars", type=int, help="number of stars or rows (each benchmark has a default)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; 7 or more for a figure that is written down")
    parser.add_argument("--engine", default="cpu", help="engine of ours (default: %(default)s; a GPU has `bench gpu`)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON files (default: %(default)s)")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {*BENCHMARKS, "all"}
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    if not options.names or "all" in options.names:
        options.names = list(BENCHMARKS)
    return options


def main(arguments: list[str]) -> int:
    """Run the benchmarks asked for; those of a GPU and those on real stars have commands of their own."""
    if arguments[:1] == ["waits"]:
        from bench.gpu.waits import main as waits

        return waits(arguments[1:])
    if arguments[:1] == ["real_stars"]:
        from bench.real_stars import main as real_stars

        return real_stars(arguments[1:])
    if arguments[:1] == ["code"]:
        from bench.gpu.code import main as code

        return code(arguments[1:])
    if arguments[:1] == ["gpu"]:
        from bench.gpu.suite import main as gpu

        return gpu(arguments[1:])
    from bench.benchmarks import BENCHMARKS

    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with pinned() as cpu, threadpool_limits(1):
        facts = machine() | {"instruction set": getattr(get_engine(options.engine), "instruction_set", "")}
        print(f"{facts['processor']}, {facts['instruction set']}, pinned to CPU {cpu}")
        for name in options.names:
            benchmark, n_stars = BENCHMARKS[name]
            wall, own = time.perf_counter(), _cpu_seconds()
            result = benchmark(options.stars or n_stars, options.rounds, options.engine)
            share = (_cpu_seconds() - own) / (time.perf_counter() - wall)
            result.extra["share of the CPU that this process had"] = share
            print(f"\n{name}: {benchmark.__doc__}", *result.lines(), sep="\n", flush=True)
            if share < QUIET:
                print("The machine was busy with something else: these figures are too low.")
            path = options.output / f"{name}.json"
            path.write_text(json.dumps({"machine": facts} | result.as_dict(), indent=2) + "\n")
    return 0


def _cpu_seconds() -> float:
    """Return the time that this process and its children have computed."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
