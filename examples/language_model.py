"""Trains a small KSSM language model on the bytes of this project's pages, and lets it write.

``python -m examples.language_model``: some 20 s of one core. It learns to spell, not to think.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from kssm.language import KSSMLMHeadModel, LanguageConfig, Sampling
from kssm.models import KSSMConfig

STEPS, ROWS, LENGTH = 150, 16, 128


def main() -> None:
    """Loss every 25 steps, then 200 bytes of its own."""
    torch.manual_seed(0)
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    text = torch.tensor(list(b"".join(page.read_bytes() for page in pages)))
    model = KSSMLMHeadModel(LanguageConfig(KSSMConfig.preset("tiny"), vocab_size=256))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(STEPS):
        starts = torch.randint(len(text) - LENGTH - 1, (ROWS, 1))
        batch = text[starts + torch.arange(LENGTH + 1)]
        logits, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == STEPS - 1:
            print(f"step {step}: {loss.item():.2f} nats a byte")
    prompt, rules = list(b"The state of a session "), Sampling(temperature=0.7)
    for piece in model.eval().stream([prompt], 200, rules, seed=0):
        print(bytes([piece.token]).decode("ascii", "replace"), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
