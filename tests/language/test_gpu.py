"""Language models on a GPU: the same texts as on the CPU, in every precision, by the engine too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kssm.checkpoint import convert_
from kssm.language import Sampling
from kssm.language.rows import LanguageRows
from kssm.runtime import Engine, EngineConfig
from tests.language.models import BACKBONES, tiny_language_model, tokens

PROMPTS = [[5, 6, 7, 8], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
RULES = Sampling(3.0, top_k=30, top_p=0.9)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", BACKBONES)
def test_logits_and_steps(name: str) -> None:
    x = tokens(2, 60)
    expected, _ = tiny_language_model(name)(x)
    model = tiny_language_model(name).cuda()
    logits, _ = model(x.cuda())
    scale = expected.abs().max()
    assert float((logits.cpu() - expected).abs().max() / scale) <= 2e-5
    _, state = model(x[:, :20].cuda())
    arena = {entry: torch.cat([value[:1], value]) for entry, value in state.items()}
    slots = torch.tensor([1, 2], device="cuda")
    steps = [model.step_(x[:, t].cuda(), arena, slots).cpu() for t in range(20, 60)]
    assert float((torch.stack(steps, dim=1) - expected[:, 20:]).abs().max() / scale) <= 2e-5


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    x = tokens(2, 60)
    expected, _ = tiny_language_model(name)(x)
    model = tiny_language_model(name).cuda()
    convert_(model, dtype)
    logits, state = model(x.cuda())
    limit = 0.06 if dtype == torch.bfloat16 else 0.01
    assert float((logits.cpu() - expected).norm() / expected.norm()) <= limit
    arena = {entry: torch.cat([value[:1], value]) for entry, value in state.items()}
    stepped = model.step_(x[:, 0].cuda(), arena, torch.tensor([1, 2], device="cuda"))
    longer, _ = model(torch.cat([x, x[:, :1]], dim=1).cuda())
    assert float((stepped - longer[:, -1]).norm() / longer[:, -1].norm()) <= limit


@pytest.mark.parametrize("name", BACKBONES)
def test_the_engine_writes_what_the_cpu_writes(name: str) -> None:
    model = tiny_language_model(name)
    expected = [
        model.generate([prompt], 24, RULES, seed=i, stop_tokens=())[0]
        for i, prompt in enumerate(PROMPTS)
    ]
    assert model.cuda().generate(PROMPTS, 24, RULES, seed=0, stop_tokens=()) == expected
    config = EngineConfig(max_rows=64, initial_rows=2, prefill_min=8)
    with Engine(LanguageRows(model), config, "cuda") as engine:
        keys = [engine.open(1).result() for _ in PROMPTS]
        for key, prompt in zip(keys, PROMPTS, strict=True):
            ids = np.array(prompt, dtype=np.float64)[:, None]
            engine.append(key, ids, want_forecast=False).result()
        futures = [engine.generate(key, 24, RULES, seed=i) for i, key in enumerate(keys)]
        assert [list(future.result().tokens) for future in futures] == expected
        assert engine._worker._executor._graphs is not None, "the steps were not captured"
