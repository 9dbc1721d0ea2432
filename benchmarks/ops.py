"""Speed and accuracy of the operations: ours, peers and the machine's limit in one run.

    python -m benchmarks.ops [SECTION ...] [--save] [--tune]

``--tune`` tries other cuts of the work instead and keeps the best in the user's tuning file.
Each section is a module with options of its own: ``python -m benchmarks.ops_scan --help``.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

SECTIONS = {
    "scan": "benchmarks.ops_scan",
    "length": "benchmarks.ops_length",
    "accuracy": "benchmarks.ops_accuracy",
    "matrix": "benchmarks.ops_matrix",
}
"""A module a section, with ``main(arguments)``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--tune", action="store_true", help="tune instead of measuring")
    parser.add_argument("--save", action="store_true", help="keep results in benchmarks/results/")
    options = parser.parse_args(arguments)
    unknown = set(options.section) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}")
    modules = ["benchmarks.ops_tune"] if options.tune else _modules(options.section)
    for name in modules:
        importlib.import_module(name).main(["--save"] if options.save else [])


def _modules(sections: Sequence[str]) -> list[str]:
    return [SECTIONS[name] for name in sections or SECTIONS]


if __name__ == "__main__":
    main()
