"""Writes a llama of random values as a GGUF file."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy

from tests.fakes.byte_tokenizer import alphabet

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
HIDDEN, MLP, LAYERS, HEADS, KV_HEADS = 32, 48, 2, 4, 2
TOKENS = [*alphabet(), "12", "<|end|>", "<|stop|>"]
END, STOP = 257, 258


def write_tiny_gguf(
    path: Path, *, pre: str = "smollm", seed: int = 0, further_templates: Mapping[str, str] | None = None
) -> dict[str, numpy.ndarray]:
    """Write a llama of random values, and return the values by their GGUF names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 257 + [3, 3])  # 1: ordinary, 3: control
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(STOP)
    writer.add_chat_template(TEMPLATE)
    for name, template in (further_templates or {}).items():
        writer.add_string(f"tokenizer.chat_template.{name}", template)
    random = numpy.random.default_rng(seed)
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,), "output": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        kv_width = HIDDEN * KV_HEADS // HEADS
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (kv_width, HIDDEN),
            f"blk.{layer}.attn_v": (kv_width, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate": (MLP, HIDDEN),
            f"blk.{layer}.ffn_up": (MLP, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, MLP),
        }
    values = {name: random.standard_normal(shape, dtype=numpy.float32) * 0.2 for name, shape in shapes.items()}
    for name, value in values.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
