"""Recordings of people, from a folder of WAV files, as one mu-law file.

    python -m experiments.audio.recordings FOLDER people.npz --names public.txt

Of every file only its liveliest half second or so is kept, at 8 kHz. ``--names`` lists the files
that may be used, one a line.
"""

from __future__ import annotations

import argparse
import random
import wave
from pathlib import Path
from typing import Final

import numpy as np

from experiments.audio.corpora import Floats, to_mu_law
from experiments.audio.synthesise import RATE, resample
from kssm.training.readers import read_wav

_FRAME: Final = 160


def lively(x: Floats, most: int) -> Floats:
    """The stretch of at most ``most`` samples with the most energy above the file's floor."""
    if len(x) <= most:
        return x
    frames = x[: len(x) // _FRAME * _FRAME].reshape(-1, _FRAME).std(1)
    loud = np.minimum(frames, np.quantile(frames, 0.8))
    reach = most // _FRAME
    start = int(np.convolve(loud, np.ones(reach), "valid").argmax()) * _FRAME
    return x[start : start + most]


def load(file: Path, most: int) -> Floats:
    """A file's lively stretch at 8 kHz, of peak 1; empty if there is nothing to hear."""
    with wave.open(str(file)) as header:
        rate = header.getframerate()
    slow = resample(read_wav(file)[0].astype(np.float64), RATE / rate).astype(np.float32)
    kept = lively(slow - slow.mean(), most)
    peak = float(np.abs(kept).max(initial=0.0))
    heard = peak > 0.02 and kept.std() > 0.05 * peak and not _rumbles(kept)
    return kept / peak if heard else kept[:0]


def _rumbles(x: Floats) -> bool:
    """Whether most of the energy lies below 120 Hz, where no voice is."""
    power = np.abs(np.fft.rfft(x)) ** 2
    return bool(power[: len(x) * 120 // RATE].sum() > 0.5 * power.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--names", type=Path)
    parser.add_argument("--seconds", type=float, default=110.0)
    parser.add_argument("--clip", type=float, default=0.6, help="seconds of each file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.rglob("*.wav"))
    if arguments.names:
        allowed = set(arguments.names.read_text().split())
        files = [file for file in files if file.name in allowed]
    by_folder: dict[Path, list[Path]] = {}
    random.Random(arguments.seed).shuffle(files)
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    clips: list[Floats] = []
    while sum(map(len, clips)) < arguments.seconds * RATE and any(by_folder.values()):
        turn = [group.pop() for group in by_folder.values() if group]
        clips += [load(file, round(arguments.clip * RATE)) for file in turn]
    clips = [clip for clip in clips if len(clip) > RATE // 5]
    codes = np.concatenate([to_mu_law(clip) for clip in clips])
    offsets = np.cumsum([0, *map(len, clips)])
    np.savez_compressed(arguments.output, codes=codes, offsets=offsets)
    print(f"{len(clips)} clips, {len(codes) / RATE:.0f} s, {arguments.output}")


if __name__ == "__main__":
    main()
