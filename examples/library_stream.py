"""Forecast a live signal in this process, without a server.

python -m examples.library_stream
"""

from __future__ import annotations

import math
import random

from kssm.forecast import Forecaster

HORIZON = 12


def main() -> None:
    """A noisy daily cycle with a jump; a forecast and a score after every sample."""
    noise = random.Random(1)
    stream = Forecaster.from_pretrained().stream(channels=1)
    for hour in range(240):
        value = 20 + 5 * math.sin(hour * math.tau / 24) + noise.gauss(0, 0.3)
        score = stream.push(value + (8 if hour == 200 else 0))[0]
        if hour % 24 == 0 or score > 3:
            low, middle, high = stream.forecast(HORIZON)[0, -1]
            print(
                f"hour {hour:3d}: {value:5.1f} (score {score:4.1f}); "
                f"in {HORIZON} h {middle:5.1f}, 80% between {low:5.1f} and {high:5.1f}"
            )


if __name__ == "__main__":
    main()
