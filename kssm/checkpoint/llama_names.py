"""Transformers as Hugging Face's Llama, Mistral and Qwen2 models name their weights."""

from __future__ import annotations

from kssm.checkpoint.names import NameMap, Weight, fused, single
from kssm.models.transformer import TransformerConfig


def llama_names(config: TransformerConfig) -> NameMap:
    """The stack's weights; q, k, v and gate, up are one matrix each here."""
    heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    sizes = [count * config.head_size for count in heads]
    layer = [
        single("layers.{i}.input_layernorm.weight", "blocks.{i}.attention_norm.weight"),
        _projections("weight", sizes),
        single("layers.{i}.self_attn.o_proj.weight", "blocks.{i}.output.weight"),
        single("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
        fused(
            ("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight"),
            "blocks.{i}.mlp.up.weight",
            (config.d_mlp, config.d_mlp),
        ),
        single("layers.{i}.mlp.down_proj.weight", "blocks.{i}.mlp.down.weight"),
    ]
    if config.qkv_bias:
        layer.append(_projections("bias", sizes))
    return NameMap((single("norm.weight", "norm.weight"),), tuple(layer))


def _projections(kind: str, sizes: list[int]) -> Weight:
    theirs = [f"layers.{{i}}.self_attn.{name}_proj.{kind}" for name in "qkv"]
    return fused(theirs, f"blocks.{{i}}.qkv.{kind}", sizes)
