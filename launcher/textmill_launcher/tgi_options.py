"""Flags and variables of text-generation-inference that do nothing here: each has no effect, or is refused.

Whatever of text-generation-inference works here is a field of `Settings`. A row leaves this table when its flag begins
to work. docs/migrate-from-tgi.md and docs/flags.md show the table to users.
"""

from typing import Any

from textmill_launcher.options import (
    Choice,
    Ignored,
    Option,
    Parse,
    Refused,
    boolean,
    integer,
    number,
    text,
)

_CHUNKS = "prompts are computed in chunks beside running requests, so no request waits for a batch"
_ROCM_KERNELS = "the variable selects kernels for AMD's GPUs, which do not exist"
_QUANTISED_KERNELS = "the variable selects kernels of quantised models, which are not served"
_TUNNEL = "the server opens no tunnel (--ngrok is refused)"
_ROPE = Refused(
    "the scaling of positions belongs to the model", "set rope_scaling in the config.json of a local folder"
)


def _ignored(name: str, parse: Parse, reason: str, **facts: Any) -> Option:
    """Return a flag that has no effect; `reason` ends the sentence `--flag has no effect here: ...`."""
    return Option(parse, f"no effect: {reason}", verdict=Ignored(reason), name=name, **facts)


def _refused(name: str, parse: Parse, verdict: Refused, **facts: Any) -> Option:
    """Return a flag that ends the start."""
    return Option(parse, f"refused: {verdict.reason}; {verdict.instead}", verdict=verdict, name=name, **facts)


def _variable(name: str, parse: Parse, reason: str) -> Option:
    """Return a variable without a flag that has no effect."""
    return _ignored(name, parse, reason, has_flag=False)


TGI_OPTIONS = (
    _ignored("enable_prefill_logprobs", boolean, "prompt log-probabilities need no flag", is_switch=True),
    _ignored("waiting_served_ratio", number(0.0), _CHUNKS),
    _ignored("max_waiting_tokens", integer(0), _CHUNKS),
    _ignored(
        "max_batch_size", integer(1), "steps are bounded in tokens, and --num-slots bounds the requests of a step"
    ),
    _ignored("prometheus_port", integer(0, 65535), "metrics are under /metrics of the main port"),
    _ignored("usage_stats", Choice(("on", "no-stack", "off")), "nothing is ever sent"),
    _ignored(
        "disable_custom_kernels",
        boolean,
        "the kernels for old Bloom and NeoX models do not exist (--no-native-kernels computes by torch alone)",
        is_switch=True,
    ),
    _ignored("ngrok_authtoken", text, _TUNNEL, is_secret=True),
    _ignored("ngrok_edge", text, _TUNNEL),
    _refused(
        "ngrok",
        boolean,
        Refused("the server opens no tunnel", "run `ngrok http PORT` beside it", harmless=(False,)),
        is_switch=True,
    ),
    _refused(
        "quantize",
        text,
        Refused(
            "weights are not quantised here, and of quantised checkpoints those in FP8 and MXFP4 alone are read",
            "leave it out, and serve such a checkpoint or one of 16 bits",
        ),
        platform_variables=("HF_MODEL_QUANTIZE",),
    ),
    _refused(
        "speculate",
        integer(0),
        Refused("there is no speculation yet", "leave it out", harmless=(0,)),
    ),
    _refused("rope_scaling", text, _ROPE),
    _refused("rope_factor", text, _ROPE),
    _refused(
        "weights_cache_override",
        text,
        Refused("weights, config and tokenizer lie in one folder", "give that folder as --model-id"),
    ),
    _refused(
        "attention",
        text,
        Refused(
            "the names of ways to attend differ here", "unset it, or give --attention-backend", harmless=("paged",)
        ),
        has_flag=False,
    ),
    _refused(
        "tgi_wiggle_room",
        text,
        Refused("the memory that stays free is set another way", "unset it, and set MEMORY_FRACTION"),
        has_flag=False,
    ),
    _variable("prefill_chunking", boolean, "prompts are always computed in chunks"),
    _variable("use_flash_attention", boolean, "--attention-backend says how attention is computed"),
    _variable("otel_exporter_otlp_protocol", text, "traces go by gRPC, whichever protocol is named"),
    _variable("log_colorize", text, "the log has no colours"),
    _variable("hf_hub_enable_hf_transfer", boolean, "the hub's library downloads without hf_transfer"),
    _variable("exllama_version", text, _QUANTISED_KERNELS),
    _variable("disable_exllama", text, _QUANTISED_KERNELS),
    _variable("use_cutlass_w8a8", text, _QUANTISED_KERNELS),
    _variable("ze_affinity_mask", text, "Intel's GPUs are not used"),
    _variable("xpu_memory_fraction", text, "Intel's GPUs are not used"),
    _variable("omp_num_threads", text, "--num-threads sets the threads of a shard"),
    _variable("rocm_use_skinny_gemm", text, _ROCM_KERNELS),
    _variable("rocm_use_custom_paged_attn", text, _ROCM_KERNELS),
)
