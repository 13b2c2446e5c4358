"""`python -m benchmarks [NAME]...`: the names are those of `BENCHMARKS`; all by default."""

from __future__ import annotations

import sys

from . import deciding, decoding, demo, formulas, measuring, simulation, startup

BENCHMARKS = {
    "startup": startup.main,
    "formulas": formulas.main,
    "simulation": simulation.main,
    "deciding": deciding.main,
    "measuring": measuring.main,
    "decoding": decoding.main,
    "demo": demo.main,
}


def main() -> None:
    """Run the named benchmarks, or all."""
    unknown = set(sys.argv[1:]) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"error: benchmarks are {', '.join(BENCHMARKS)}; got {', '.join(unknown)}")
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n{name}")
        BENCHMARKS[name]()


main()
