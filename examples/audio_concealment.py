"""Lose packets of a recording and fill the gaps with what the model forecasts.

    python -m examples.audio_concealment call.wav concealed.wav --loss 0.1

The recording: WAV, PCM, 16 bits, mono, 8 kHz. Packets of 20 ms are lost at random; the model hears
what came before a gap, never what comes after it.
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kssm.audio import AudioStream

PACKET_MS = 20
FADE = 20
Floats = NDArray[np.float64]


def read(path: str, rate: int) -> Floats:
    """Samples within -1 ... 1."""
    with wave.open(path) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, rate):
            raise SystemExit(f"{path}: need one channel, 16 bits and {rate} samples a second")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768.0


def write(path: str, samples: Floats, rate: int) -> None:
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((samples.clip(-1.0, 1.0) * 32767.0).astype("<i2").tobytes())


def conceal(stream: AudioStream, packets: list[Floats], lost: list[bool]) -> Iterator[Floats]:
    """What a receiver plays: packets as they come, forecasts for lost ones.

    The forecast goes on a little after a gap, so that the next packet can be faded in.
    """
    after_gap = np.zeros(0)
    for packet, gone in zip(packets, lost, strict=True):
        if gone:
            yield stream.conceal(len(packet))[0]
            after_gap = stream.forecast(FADE, (0.5,))[0, :, 0]
            continue
        stream.push(packet)
        ramp = np.linspace(0.0, 1.0, len(after_gap))
        played = packet.copy()
        played[: len(ramp)] = ramp * packet[: len(ramp)] + (1.0 - ramp) * after_gap
        after_gap = np.zeros(0)
        yield played


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording")
    parser.add_argument("output")
    parser.add_argument("--loss", type=float, default=0.1, help="share of the packets to lose")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stream = AudioStream.from_pretrained()
    size = stream.sample_rate * PACKET_MS // 1000
    samples = read(arguments.recording, stream.sample_rate)
    packets = [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]
    lost = (np.random.default_rng(arguments.seed).random(len(packets)) < arguments.loss).tolist()
    played = list(conceal(stream, packets, lost))
    write(arguments.output, np.concatenate(played), stream.sample_rate)
    pairs = [(a, b) for a, b, gone in zip(packets, played, lost, strict=True) if gone]
    energy = sum(float((a**2).sum()) for a, _ in pairs)
    wrong = sum(float(((a - b) ** 2).sum()) for a, b in pairs) + 1e-12
    ratio = 10 * np.log10(energy / wrong + 1e-12)
    print(
        f"{len(pairs)} of {len(packets)} packets lost; "
        f"signal to error in the gaps {ratio:.1f} dB (silence: 0)"
    )


if __name__ == "__main__":
    main()
