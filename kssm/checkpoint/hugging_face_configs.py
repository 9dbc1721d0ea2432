"""``config.json`` of ``transformers`` to our configurations and back, architecture by architecture.

A setting that our models cannot honour must not be passed over: each is named in the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from kssm.checkpoint.hugging_face_fields import Fields
from kssm.errors import CheckpointError, InvalidInputError
from kssm.models.mamba import MambaConfig
from kssm.models.mamba2 import Mamba2Config
from kssm.models.rwkv4 import RWKV4Config
from kssm.models.rwkv6 import RWKV6Config
from kssm.models.transformer import TransformerConfig

TIED_BY_DEFAULT: Final[Mapping[str, bool]] = MappingProxyType({"mamba": True})
"""What ``tie_word_embeddings`` means where the file does not say."""
_RWKV6_HEAD_DIVISOR: Final = 8


def read_mamba(fields: Fields) -> MambaConfig:
    """``MambaConfig`` of transformers."""
    width = fields.number("hidden_size")
    _require_mamba(fields)
    inner = fields.raw("intermediate_size")
    rank = fields.raw("time_step_rank")
    return MambaConfig(
        d_model=width,
        n_layers=fields.number("num_hidden_layers"),
        d_inner=fields.number("expand", 2) * width if inner is None else int(inner),
        d_state=fields.number("state_size", 16),
        rank=-(-width // 16) if rank in {None, "auto"} else int(rank),
        conv_width=fields.number("conv_kernel", 4),
        norm_eps=fields.real("layer_norm_epsilon", 1e-5),
    )


def write_mamba(config: MambaConfig) -> dict[str, Any]:
    """The inverse of ``read_mamba``."""
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "expand": _expansion(config),
        "intermediate_size": config.d_inner,
        "state_size": config.d_state,
        "time_step_rank": config.rank,
        "conv_kernel": config.conv_width,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def read_mamba2(fields: Fields) -> Mamba2Config:
    """``Mamba2Config`` of transformers."""
    _require_mamba(fields)
    fields.require("rms_norm", True)
    fields.require("norm_before_gate", False)
    limits = fields.raw("time_step_limit")
    if limits is not None and not _unlimited(limits):
        fields.refuse(f"time_step_limit = {limits!r} is not supported")
    heads, size = fields.number("num_heads"), fields.number("head_dim")
    return Mamba2Config(
        d_model=fields.number("hidden_size"),
        n_layers=fields.number("num_hidden_layers"),
        d_inner=heads * size,
        head_dim=size,
        d_state=fields.number("state_size"),
        groups=fields.number("n_groups", 1),
        conv_width=fields.number("conv_kernel", 4),
        norm_eps=fields.real("layer_norm_epsilon", 1e-5),
    )


def write_mamba2(config: Mamba2Config) -> dict[str, Any]:
    """The inverse of ``read_mamba2``."""
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "expand": _expansion(config),
        "num_heads": config.heads,
        "head_dim": config.head_dim,
        "state_size": config.d_state,
        "n_groups": config.groups,
        "conv_kernel": config.conv_width,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def read_llama(fields: Fields) -> TransformerConfig:
    """``LlamaConfig``, ``MistralConfig`` and ``Qwen2Config`` of transformers.

    Attention over all of a text is a window of ``max_position_embeddings``.
    """
    kind = fields.text("model_type")
    for name, allowed in {"hidden_act": "silu", "mlp_bias": False, "attention_bias": False}.items():
        fields.require(name, allowed)
    heads, width = fields.number("num_attention_heads"), fields.number("hidden_size")
    return TransformerConfig(
        d_model=width,
        n_layers=fields.number("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=fields.number("num_key_value_heads", heads),
        head_size=fields.number("head_dim", max(width // heads, 1)),
        d_mlp=fields.number("intermediate_size"),
        window=_window(fields),
        rope_theta=_rope_theta(fields),
        qkv_bias=kind == "qwen2",
        norm_eps=fields.real("rms_norm_eps", 1e-6),
    )


def write_llama(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of ``read_llama``: Mistral, or Qwen2 where there are biases."""
    kind = "qwen2" if config.qkv_bias else "mistral"
    windowed: dict[str, Any] = {"sliding_window": config.window}
    if config.qkv_bias:
        windowed |= {"use_sliding_window": True, "max_window_layers": 0}
        windowed["layer_types"] = ["sliding_attention"] * config.n_layers
    return {
        "architectures": [f"{kind.title()}ForCausalLM"],
        "model_type": kind,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": config.window,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        **windowed,
    }


def read_rwkv4(fields: Fields) -> RWKV4Config:
    """``RwkvConfig`` of transformers."""
    width = fields.number("hidden_size")
    return RWKV4Config(
        d_model=width,
        n_layers=fields.number("num_hidden_layers"),
        d_inner=fields.number("attention_hidden_size", width),
        d_ffn=fields.number("intermediate_size", 4 * width),
        input_norm=True,
        norm_eps=fields.real("layer_norm_epsilon", 1e-5),
    )


def write_rwkv4(config: RWKV4Config) -> dict[str, Any]:
    """The inverse of ``read_rwkv4``."""
    _require_input_norm(config.input_norm)
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "hidden_size": config.d_model,
        "attention_hidden_size": config.d_inner,
        "num_hidden_layers": config.n_layers,
        "intermediate_size": config.d_ffn,
        "layer_norm_epsilon": config.norm_eps,
    }


def read_rwkv6(fields: Fields) -> RWKV6Config:
    """``Rwkv6Config`` of the authors' checkpoints ("v6-Finch")."""
    width = fields.number("hidden_size")
    fields.require("attention_hidden_size", width, None)
    fields.require("head_size_divisor", _RWKV6_HEAD_DIVISOR)
    large = width == 4096
    eps = fields.real("layer_norm_epsilon", 1e-5)
    return RWKV6Config(
        d_model=width,
        n_layers=fields.number("num_hidden_layers"),
        head_size=fields.number("head_size", 64),
        d_ffn=fields.number("intermediate_size", int(width * 3.5) // 32 * 32),
        mix_rank=fields.number("time_mix_extra_dim", 64 if large else 32),
        decay_rank=fields.number("time_decay_extra_dim", 128 if large else 64),
        input_norm=True,
        norm_eps=eps,
        head_eps=1e-5 * _RWKV6_HEAD_DIVISOR**2,
    )


def write_rwkv6(config: RWKV6Config) -> dict[str, Any]:
    """The inverse of ``read_rwkv6``."""
    _require_input_norm(config.input_norm)
    return {
        "architectures": ["Rwkv6ForCausalLM"],
        "model_type": "rwkv6",
        "hidden_size": config.d_model,
        "attention_hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "head_size": config.head_size,
        "head_size_divisor": _RWKV6_HEAD_DIVISOR,
        "intermediate_size": config.d_ffn,
        "time_mix_extra_dim": config.mix_rank,
        "time_decay_extra_dim": config.decay_rank,
        "layer_norm_epsilon": config.norm_eps,
    }


def narrowed(config: TransformerConfig, window: int) -> TransformerConfig:
    """The same with a window of at most ``window`` tokens; raises ``invalid_config``."""
    if window < 1:
        raise InvalidInputError("the window must be at least 1", code="invalid_config")
    return replace(config, window=min(config.window, window))


def _require_input_norm(present: bool) -> None:
    if not present:
        raise CheckpointError(
            "RWKV's checkpoints have a norm before the first block", code="unsupported_checkpoint"
        )


def _require_mamba(fields: Fields) -> None:
    fields.require("hidden_act", "silu")
    fields.require("use_bias", False)
    fields.require("use_conv_bias", True)


def _expansion(config: MambaConfig | Mamba2Config) -> int:
    if config.d_inner % config.d_model:
        raise CheckpointError(
            "transformers needs d_inner to be a multiple of d_model", code="unsupported_checkpoint"
        )
    return config.d_inner // config.d_model


def _unlimited(limits: Any) -> bool:
    """Whether steps are not cut: (0, infinity), which their JSON writes in one of two ways."""
    low, high = limits
    return low == 0 and high in (float("inf"), {"__float__": "Infinity"})


def _window(fields: Fields) -> int:
    longest = fields.number("max_position_embeddings", 2048)
    layers: list[str] = list(fields.raw("layer_types") or [])
    if fields.text("model_type") == "qwen2" and not fields.flag("use_sliding_window", False):
        return longest
    if "full_attention" in layers and "sliding_attention" in layers:
        fields.refuse("layers with and without a sliding window are not supported")
    sliding = fields.raw("sliding_window")
    return longest if sliding is None else int(sliding)


def _rope_theta(fields: Fields) -> float:
    """The base of the rotary frequencies, in the newer or the older place."""
    rope: Mapping[str, Any] = fields.raw("rope_parameters") or {}
    scaling: Mapping[str, Any] = fields.raw("rope_scaling") or {}
    for settings in (rope, scaling):
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            fields.refuse(f"rotary frequencies of type {kind!r} are not supported")
    if "rope_theta" in rope:
        return float(rope["rope_theta"])
    return fields.real("rope_theta", 10_000.0)
