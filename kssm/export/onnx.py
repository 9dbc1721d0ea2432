"""The step as an ONNX model with its state as explicit inputs and outputs."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.export.decompositions import decompositions
from kssm.export.packing import Layout
from kssm.export.steps import ForecasterStep, LanguageStep, ModelStep
from kssm.forecast import SignalForecaster
from kssm.language import LanguageModel
from kssm.models import SequenceModel

Exportable = SignalForecaster | LanguageModel | SequenceModel
Step = ForecasterStep | LanguageStep | ModelStep

_ROWS = 3
"""Rows of the example that is traced; any number may run."""


def export_onnx(model: Exportable, path: str | Path) -> Layout:
    """Write one step of ``model`` to ``path``; the layout of its state there.

    Inputs are those of the model's class in ``steps`` and one packed state tensor for each dtype,
    outputs the results and the new states. The first axis of all is the rows, of any number. The
    file's metadata says where each entry of the state lies (``kssm.layout``, JSON). ``model`` is
    left on the CPU, in evaluation mode and without gradients.

    Raises:
        InvalidInputError: code ``export_unavailable`` without the packages of the extra
            ``export``; ``export_unsupported`` for operations that ONNX lacks (complex numbers);
            ``cannot_write`` where there is no such folder.
    """
    if not Path(path).parent.is_dir():
        raise InvalidInputError(f"{path}: there is no such folder", "cannot_write")
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise InvalidInputError(
                f"{package} is not installed: pip install 'kssm[export]'", "export_unavailable"
            )
    step = step_of(model)
    example = _example(step)
    rows = {0: torch.export.Dim("rows")}
    shapes = (*(rows for _ in step.inputs), tuple(rows for _ in step.layout.tensors))
    try:
        exported = _convert(step, example, shapes)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).partition("Exception summary")[2].strip()
        raise InvalidInputError(f"not exportable: {reason}", "export_unsupported") from error
    _name_rows(exported.model.graph)
    exported.model.metadata_props.update(_metadata(model, step.layout))
    exported.save(str(path))
    return step.layout


def _convert(step: Step, example: tuple[Tensor, ...], shapes: object) -> Any:
    """The traced step as an ONNX program."""
    names = [packed.name for packed in step.layout.tensors]
    with _quiet(), torch.no_grad():
        program = torch.export.export(step, example, dynamic_shapes=cast("Any", shapes))
        if isinstance(step, ForecasterStep):  # it has fp64 parts
            program = program.run_decompositions(decompositions())
        return torch.onnx.export(
            program,
            dynamo=True,
            input_names=[*step.inputs, *names],
            output_names=[*step.outputs, *(f"new_{name}" for name in names)],
            verbose=False,
            optimize=False,  # the optimizer takes a floor of 1e-30 for 0; onnxruntime has its own
        )


def step_of(model: Exportable) -> Step:
    """The function that is exported, in evaluation mode on the CPU."""
    model = model.cpu().eval().requires_grad_(False)
    if isinstance(model, SignalForecaster):
        return ForecasterStep(model)
    return LanguageStep(model) if isinstance(model, LanguageModel) else ModelStep(model)


def _name_rows(graph: Any) -> None:
    """Call the first axis of inputs and outputs, and what depends on it, ``rows``."""
    symbol = str(graph.inputs[0].shape[0])
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if str(size) == symbol:
                value.shape[axis] = "rows"


def _example(step: Step) -> tuple[Tensor, ...]:
    state = (torch.zeros(_ROWS, p.size, dtype=p.dtype) for p in step.layout.tensors)
    if isinstance(step, ForecasterStep):
        values = torch.linspace(-1.0, 1.0, _ROWS, dtype=torch.float64)
        return values, torch.ones_like(values), *state
    if isinstance(step, LanguageStep):
        return torch.arange(_ROWS), *state
    x = torch.linspace(-1.0, 1.0, _ROWS * step.model.d_model).view(_ROWS, -1)
    dtype = next(step.model.parameters()).dtype
    return x.to(dtype), torch.ones(_ROWS, dtype=dtype), *state


def _metadata(model: Exportable, layout: Layout) -> dict[str, str]:
    places = {
        packed.name: [[name, list(shape)] for name, shape in packed.entries]
        for packed in layout.tensors
    }
    found = {"kssm.layout": json.dumps(places)}
    if not isinstance(model, SequenceModel):
        found["kssm.fingerprint"] = model.fingerprint
    return found


@contextmanager
def _quiet() -> Generator[None]:
    """The exporter reports torchvision's absence and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
