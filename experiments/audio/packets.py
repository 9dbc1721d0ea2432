"""A call with lost packets: each receiver hears its own fillings as the past of later gaps.

python -m experiments.audio.packets --digits fsdd.npz --checkpoint kssm-audio
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.audio.corpora import HELD_OUT, spoken_digits
from experiments.audio.evaluate import concealers, snr
from kssm.audio import AudioForecaster, load

Floats = NDArray[np.float64]

_PACKET: Final = 160
_PAST: Final = 800
_ACTIVE: Final = 1e-3


def lost_packets(packets: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which packets are lost; none of the first 100 ms."""
    lost = np.random.default_rng(seed).random(packets) < share
    lost[: _PAST // _PACKET] = False
    return lost


def receive(call: Floats, lost: NDArray[np.bool_], way: Callable[[Floats], Floats]) -> Floats:
    """What is played when ``way`` fills each lost packet from the 100 ms played before it."""
    played = call.copy()
    for packet in np.flatnonzero(lost):
        at = packet * _PACKET
        played[at : at + _PACKET] = way(played[None, at - _PAST : at])[0]
    return played


def receive_by_model(model: AudioForecaster, call: Floats, lost: NDArray[np.bool_]) -> Floats:
    """What is played when the forecaster hears the call packet by packet."""
    played = call.copy()
    state = model.initial_state(1)
    blank = torch.full((1, _PACKET), torch.nan, dtype=torch.float64)
    for packet, gone in enumerate(lost):
        at = slice(packet * _PACKET, (packet + 1) * _PACKET)
        if gone:
            played[at] = model.path(state, _PACKET)[0, 0].double().numpy()
        heard = blank if gone else torch.from_numpy(call[None, at])
        state = model.prefill(heard, state).state
    return played


def calls(digits: Path, speakers: Sequence[str]) -> list[Floats]:
    """Every speaker's recordings one after another, in whole packets."""
    joined = [np.concatenate(spoken_digits(digits, [s])).astype(np.float64) for s in speakers]
    return [x[: len(x) // _PACKET * _PACKET] for x in joined]


def evaluate(
    model: AudioForecaster, spoken: Sequence[Floats], share: float, seed: int
) -> dict[str, dict[str, float]]:
    """SNR in the lost packets that hold speech, of every way to fill them."""
    ways = concealers()
    filled: dict[str, list[Floats]] = {name: [] for name in [*ways, "ours"]}
    truth: list[Floats] = []
    for call in spoken:
        lost = lost_packets(len(call) // _PACKET, share, seed)
        packets = call.reshape(-1, _PACKET)
        energy = (packets**2).sum(1)
        counted = lost & (energy > _ACTIVE * energy.max())
        truth.append(packets[counted])
        for name, way in ways.items():
            filled[name].append(receive(call, lost, way).reshape(-1, _PACKET)[counted])
        filled["ours"].append(receive_by_model(model, call, lost).reshape(-1, _PACKET)[counted])
    return {name: snr(np.concatenate(truth), np.concatenate(y)) for name, y in filled.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--checkpoint", default="kssm-audio")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--share", type=float, default=0.1, help="of the packets that is lost")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = load(arguments.checkpoint)
    spoken = calls(arguments.digits, HELD_OUT)
    report = evaluate(model, spoken, arguments.share, arguments.seed)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    for name, figures in report.items():
        print(f"{name:28}", *(f"{k} {v:6.2f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
