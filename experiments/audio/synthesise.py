"""Voices by espeak-ng: the same utterances every time, as one mu-law file.

    python -m experiments.audio.synthesise voices.npz

Needs the program ``espeak-ng`` (GPL-3; what it says is not covered by its licence). The texts are
ours: sentences put together from lists of words, and numbers, in a language each voice can read.
"""

from __future__ import annotations

import argparse
import random
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.audio.corpora import Floats, to_mu_law

RATE: Final = 8000
_TAPS: Final = 48
_HEADER: Final = 44

# Who or what, does what, where or when: any one of each makes a sentence.
_WORDS: Final = {
    "en-us": (
        "my neighbour|the old train|a quiet engineer|every second sensor|our weather station",
        "measures|forgets|repairs|carries|announces|would rather keep",
        "seven yellow boxes|the water level|a very long signal|fresh bread|its own voice",
        "before noon|under the bridge|without a sound|on the way home|in zero gravity",
    ),
    "de": (
        "die Nachbarin|ein alter Zug|der stille Ingenieur|jede zweite Pumpe|unser Fluss",
        "misst|vergisst|trägt|verkauft|hört",
        "sieben gelbe Kisten|den Wasserstand|frisches Brot|ein langes Signal",
        "vor Mittag|unter der Brücke|ohne jedes Geräusch|auf dem Heimweg",
    ),
    "fr-fr": (
        "ma voisine|le vieux train|chaque capteur|notre rivière",
        "mesure|oublie|porte|vend|écoute",
        "sept boîtes jaunes|le niveau de l'eau|du pain frais|un long signal",
        "avant midi|sous le pont|sans aucun bruit|sur le chemin",
    ),
    "es": (
        "mi vecina|el tren viejo|cada sensor|nuestro río",
        "mide|olvida|lleva|vende|escucha",
        "siete cajas amarillas|el nivel del agua|pan fresco|una señal larga",
        "antes del mediodía|bajo el puente|sin ruido|de camino a casa",
    ),
    "it": (
        "la mia vicina|il vecchio treno|ogni sensore|il nostro fiume",
        "misura|dimentica|porta|vende|ascolta",
        "sette scatole gialle|il livello dell'acqua|pane fresco|un lungo segnale",
        "prima di mezzogiorno|sotto il ponte|senza rumore|tornando a casa",
    ),
    "pl": (
        "moja sąsiadka|stary pociąg|każdy czujnik|nasza rzeka",
        "mierzy|niesie|sprzedaje|słyszy",
        "siedem żółtych pudełek|poziom wody|świeży chleb|długi sygnał",
        "przed południem|pod mostem|bez hałasu|w drodze do domu",
    ),
    "fi": (
        "naapurini|vanha juna|jokainen anturi|meidän joki",
        "mittaa|unohtaa|kantaa|myy|kuulee",
        "seitsemän keltaista laatikkoa|veden korkeuden|tuoretta leipää|pitkän signaalin",
        "ennen puoltapäivää|sillan alla|ilman ääntä|kotimatkalla",
    ),
    "hi": (
        "मेरा पड़ोसी|पुरानी रेलगाड़ी|हमारी नदी",
        "आज|कल|हमेशा",
        "सात पीले डिब्बे|ताज़ी रोटी|पानी का स्तर",
        "लाती है|देखता है|सुनता है",
    ),
    "tr": (
        "komşum|eski tren|her algılayıcı|bizim nehir",
        "öğleden önce|köprünün altında|sessizce",
        "yedi sarı kutu|suyun seviyesini|taze ekmek",
        "ölçüyor|unutuyor|taşıyor|satıyor",
    ),
    "sw": (
        "jirani yangu|treni ya zamani|mto wetu",
        "anapima|anabeba|anauza|anasikia",
        "masanduku saba|mkate safi|kiwango cha maji",
        "kabla ya mchana|chini ya daraja|bila kelele",
    ),
}
_KINDS: Final = str.split(
    "Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee "
    "Marco Mario Michael Mike Nguyen Storm adam anika anikaRobot "
    "antonio aunty belinda benjamin boris caleb croak david ed edward edward2 f1 f2 f3 f4 f5 "
    "grandma grandpa gustave iven iven2 iven3 iven4 john klatt klatt2 klatt3 klatt4 klatt5 "
    "klatt6 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel norbert pablo paul pedro "
    "quincy rob robert sandro shelby steph steph2 steph3 travis victor whisper whisperf zac"
)


def say(text: str, voice: str, speed: int, pitch: int) -> Floats:
    """An utterance at 8 kHz, of peak 1, silence at both ends cut."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch)]
    sound = subprocess.run([*command, "--stdout", text], check=True, capture_output=True).stdout
    # The header of a stream does not know the length.
    rate = int.from_bytes(sound[24:28], "little")
    samples = np.frombuffer(sound[_HEADER:], "<i2").astype(np.float64)
    slow = resample(samples, RATE / rate)
    slow = slow / (np.abs(slow).max() + 1e-9)
    loud = np.flatnonzero(np.abs(slow) > 0.01)
    return slow[max(0, loud[0] - 200) : loud[-1] + 200].astype(np.float32)


def resample(x: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Samples at ``ratio`` < 1 of the rate, by a windowed sinc below the new Nyquist frequency."""
    centre = np.arange(int(len(x) * ratio)) / ratio
    offset = np.arange(-_TAPS, _TAPS + 1)
    place = np.floor(centre)[:, None] + offset
    distance = (place - centre[:, None]) * ratio
    inside = np.abs(distance) < _TAPS * ratio
    window = np.cos(np.clip(distance / (_TAPS * ratio), -1, 1) * np.pi / 2) ** 2
    kernel = ratio * np.sinc(distance * 0.97) * 0.97 * window * inside
    padded = np.pad(x, _TAPS + 1)
    return (padded[(place + _TAPS + 1).astype(np.int64)] * kernel).sum(1)


def sentence(rng: random.Random, language: str) -> str:
    """A sentence, or now and then a number."""
    if rng.random() < 0.25:
        return str(rng.randrange(10 ** rng.randrange(1, 7)))
    return " ".join(rng.choice(part.split("|")) for part in _WORDS[language])


def utterances(seconds: float, seed: int) -> list[Floats]:
    """Utterances of random voices until there are enough; the same seed gives the same ones."""
    rng = random.Random(seed)
    spoken: list[Floats] = []
    while sum(map(len, spoken)) < seconds * RATE:
        language = rng.choice(list(_WORDS))
        voice = f"{language}+{rng.choice(_KINDS)}"
        words = sentence(rng, language)
        speed, pitch = rng.randint(110, 240), rng.randint(0, 99)
        spoken.append(say(words, voice, speed, pitch)[: 3 * RATE // 2])
    return spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=220.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spoken = utterances(arguments.seconds, arguments.seed)
    offsets = np.cumsum([0, *map(len, spoken)])
    codes = np.concatenate([to_mu_law(x) for x in spoken])
    np.savez_compressed(arguments.output, codes=codes, offsets=offsets)
    print(f"{len(spoken)} utterances, {len(codes) / RATE:.0f} s, {arguments.output}")


if __name__ == "__main__":
    main()
