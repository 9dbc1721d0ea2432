"""Several resolutions of a row, with and without, on weights that ship: nothing is trained.

python -m experiments.ablations.resolutions --tasks FOLDER --output FILE.json [--model NAME]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from experiments.ablations.scores import score_forecaster
from kssm.forecast import pretrained
from kssm.forecast.resolutions import at_one_resolution
from kssm.training.scoring import load_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores at one and at several resolutions.")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("one", "several"), help="one of the two")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    several = pretrained.load(options.model, options.device)
    forms = {"one": at_one_resolution(several), "several": several}
    tasks = load_tasks(options.tasks)
    found: dict[str, object] = {"model": options.model, "torch": torch.__version__}
    for name, model in forms.items():
        if options.only in (None, name):
            found[name] = score_forecaster(model, tasks)
            print(name, found[name], flush=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
