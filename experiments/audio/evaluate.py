"""Prediction gain and concealment on speakers that training never heard.

python -m experiments.audio.evaluate --digits fsdd.npz --checkpoint kssm-audio --output FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.audio import baselines
from experiments.audio.corpora import HELD_OUT, spoken_digits
from experiments.audio.losses import fresh
from kssm.audio.model import AudioNetwork, pad_patches

Floats = NDArray[np.float64]
Report = dict[str, Any]

_SKIP: Final = 400
_FRAME: Final = 160
_ACTIVE: Final = 1e-4
_LAGS: Final = range(20, 161)


def gains(truth: Sequence[Floats], guess: Sequence[Floats]) -> dict[str, float]:
    """Prediction gains in dB: of recordings (mean), of active 20 ms frames (mean, median).

    The first 50 ms of each recording are left out. A frame is active within 40 dB of the
    recording's loudest.
    """
    whole: list[float] = []
    frames: list[Floats] = []
    for x, y in zip(truth, guess, strict=True):
        size = (len(x) - _SKIP) // _FRAME * _FRAME
        signal, error = x[_SKIP : _SKIP + size] ** 2, (x - y)[_SKIP : _SKIP + size] ** 2
        whole.append(10 * np.log10(signal.sum() / error.sum()))
        energy, wrong = signal.reshape(-1, _FRAME).sum(1), error.reshape(-1, _FRAME).sum(1)
        active = energy > _ACTIVE * energy.max()
        frames.append(10 * np.log10(energy[active] / np.maximum(wrong[active], 1e-20)))
    ratios = np.concatenate(frames)
    return _rounded(
        recordings=float(np.mean(whole)),
        frames=float(ratios.mean()),
        frames_median=float(np.median(ratios)),
    )


def snr(truth: Floats, guess: Floats) -> dict[str, float]:
    """SNR in dB of gaps [n, samples]: mean (each within -10 ... 35), median, of the energies."""
    energy, wrong = (truth**2).sum(1), ((truth - guess) ** 2).sum(1) + 1e-20
    ratios = 10 * np.log10(energy / wrong)
    return _rounded(
        mean=float(ratios.clip(-10.0, 35.0).mean()),
        median=float(np.median(ratios)),
        pooled=float(10 * np.log10(energy.sum() / wrong.sum())),
    )


def cut_gaps(recordings: Sequence[Floats], patch: int) -> list[NDArray[np.int64]]:
    """Where gaps of 20 ms begin: every 10 ms in active speech, on borders of patches."""
    starts: list[NDArray[np.int64]] = []
    for x in recordings:
        at = np.arange(2 * _SKIP, len(x) - 200, 80) // patch * patch
        energy = np.array([(x[t : t + _FRAME] ** 2).sum() for t in at])
        starts.append(at[energy > _ACTIVE * 10 * energy.max()] if len(at) else at)
    return starts


@torch.inference_mode()
def model_guesses(
    network: AudioNetwork, x: Floats, starts: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """One-sample-ahead predictions [T] and scales [T], and outlooks [gaps, horizon]."""
    config = network.config
    device = next(network.parameters()).device
    samples = pad_patches(torch.from_numpy(x).float().unsqueeze(0), config.patch).to(device)
    lost = torch.zeros(1, samples.shape[1] // config.patch, device=device)
    encoded, _ = network.encode(samples, *fresh(network, 1, device), lost, None)
    guess = network.guess_next(encoded, samples)
    borders = torch.from_numpy(starts // config.patch).to(device)
    windows = encoded.blocks[0, borders * config.blocks]
    ahead = network.look_ahead(windows, encoded.context[0, borders]).mean
    flat = [part.flatten()[: len(x)].double().cpu().numpy() for part in guess]
    return flat[0], flat[1], ahead.double().cpu().numpy()


class Linear(NamedTuple):
    """A setting of backward-adaptive linear prediction: ``window`` of ``_WINDOWS``."""

    order: int
    window: str
    every: int

    @property
    def name(self) -> str:
        return f"order {self.order}, {self.window}, every {self.every}"

    def gains(self, recordings: Sequence[Floats]) -> dict[str, float]:
        window = _WINDOWS[self.window]()
        guesses = [baselines.backward_lpc(x, self.order, window, self.every) for x in recordings]
        return gains(recordings, guesses)


_WINDOWS: Final[Mapping[str, Callable[[], Floats]]] = {
    "Barnwell .97": lambda: baselines.barnwell(400, 0.97),
    "Barnwell .98": lambda: baselines.barnwell(400, 0.98),
    "Barnwell .985": lambda: baselines.barnwell(400, 0.985),
    "skewed 240/20": lambda: baselines.skewed(240, 20),
}


def linear_gains(
    recordings: Sequence[Floats], windows: Collection[str], workers: int
) -> dict[str, dict[str, float]]:
    """Backward-adaptive linear prediction: orders, windows, how often updated; no workers, none."""
    settings = [Linear(16, window, every) for window in windows for every in (1, 40)]
    settings += [
        Linear(order, "Barnwell .985", every) for order in (32, 50, 128) for every in (1, 40)
    ]
    if not workers:
        return {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(setting.gains, recordings) for setting in settings]
        return {setting.name: job.result() for setting, job in zip(settings, jobs, strict=True)}


def concealers() -> dict[str, Callable[[Floats], Floats]]:
    """Names of the classical ways to fill a gap, from the past [n, 800]."""
    ways: dict[str, Callable[[Floats], Floats]] = {
        "silence": lambda past: np.zeros((len(past), _FRAME)),
        "repetition": lambda past: baselines.repetition(past, _FRAME, _LAGS, 160),
        "repetition, fading": lambda past: baselines.repetition(past, _FRAME, _LAGS, 160, 0.2),
        "repetition, G.711 lags": lambda past: baselines.repetition(
            past, _FRAME, range(40, 121), 160, 0.2
        ),
    }
    for order, decay in ((16, 0.975), (64, 0.99), (128, 0.99)):
        window = baselines.barnwell(400, decay)
        ways[f"autocorrelation {order}"] = lambda past, order=order, window=window: (
            baselines.extrapolate(past, baselines.fit(past[:, -400:], order, window), _FRAME)
        )
    for order, length in ((16, 240), (16, 400), (32, 400), (64, 400), (128, 400), (160, 640)):
        ways[f"Burg {order} on {length}"] = lambda past, order=order, length=length: (
            baselines.extrapolate(past, baselines.burg(past[:, -length:], order), _FRAME)
        )
    return ways


def evaluate(
    network: AudioNetwork, digits: Path, speakers: Sequence[str], stride: int, workers: int
) -> Report:
    """All figures of the recordings of ``speakers`` (every ``stride``-th)."""
    recordings = [x.astype(np.float64) for x in spoken_digits(digits, speakers)][::stride]
    recordings = [x for x in recordings if len(x) >= 2 * _SKIP + 400]
    starts = cut_gaps(recordings, network.config.patch)
    results = [model_guesses(network, x, s) for x, s in zip(recordings, starts, strict=True)]
    cuts = [(x, t) for x, s in zip(recordings, starts, strict=True) for t in s]
    past = np.stack([x[t - 800 : t] for x, t in cuts])
    truth = np.stack([x[t : t + _FRAME] for x, t in cuts])
    ahead = np.concatenate([r[2] for r in results])
    patch = network.config.patch
    filled = {name: way(past) for name, way in concealers().items()}
    filled["ours"] = ahead[:, :_FRAME]
    error = np.concatenate(
        [np.abs(x - r[0])[_SKIP:] for x, r in zip(recordings, results, strict=True)]
    )
    scale = np.concatenate([r[1][_SKIP:] for r in results])
    return {
        "speakers": list(speakers),
        "recordings": len(recordings),
        "gaps": len(cuts),
        "one_ahead": {
            "ours": gains(recordings, [r[0] for r in results]),
            **linear_gains(recordings, list(_WINDOWS)[: 1 if stride > 1 else None], workers),
        },
        "coverage_80": round(float((error < scale * np.log(5.0)).mean()), 3),
        "gap_20_ms": {name: snr(truth, y) for name, y in filled.items()},
        "patch_5_ms": {name: snr(truth[:, :patch], y[:, :patch]) for name, y in filled.items()},
    }


def _rounded(**values: float) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--checkpoint", default="kssm-audio")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="0 = no linear prediction")
    parser.add_argument("--speakers", nargs="+", default=HELD_OUT)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    from kssm.audio.pretrained import load

    network = load(arguments.checkpoint, arguments.device)
    report = {
        speaker: evaluate(network, arguments.digits, [speaker], arguments.stride, 0)
        for speaker in arguments.speakers
        if arguments.stride == 1 and arguments.workers
    }
    report["all"] = evaluate(
        network, arguments.digits, arguments.speakers, arguments.stride, arguments.workers
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    show(report["all"])


def show(report: Report) -> None:
    """The figures as lines."""
    for part in ("one_ahead", "gap_20_ms", "patch_5_ms"):
        for name, figures in report[part].items():
            print(
                f"{part:10} {name:32}", *(f"{k} {v:6.2f}" for k, v in figures.items()), flush=True
            )
    print(
        "coverage of 80%",
        report["coverage_80"],
        "recordings",
        report["recordings"],
        "gaps",
        report["gaps"],
    )


if __name__ == "__main__":
    main()
