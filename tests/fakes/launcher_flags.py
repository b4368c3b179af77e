"""One good value for each flag of the launcher, and the flag as it is written."""

from textmill_launcher.settings import OPTIONS

# For each option a good value that differs from the default: the text of the flag, and the value in the settings.
GOOD_VALUES = {
    "model_id": ("org/model", "org/model"),
    "revision": ("refs/pr/3", "refs/pr/3"),
    "sharded": ("true", True),
    "num_shard": ("2", 2),
    "dtype": ("bfloat16", "bfloat16"),
    "device": ("cpu", "cpu"),
    "kv_cache_bytes": ("1048576", 1_048_576),
    "memory_fraction": ("0.5", 0.5),
    "num_threads": ("2", 2),
    "native_cache_dir": ("/kernels", "/kernels"),
    "no_native_kernels": ("true", True),
    "no_native_decoder": ("true", True),
    "trust_remote_code": ("true", True),
    "allow_pickle": ("true", True),
    "disable_swaps": ("qkv,rms_norm", "qkv,rms_norm"),
    "huggingface_hub_cache": ("/data", "/data"),
    "conversion_cache": ("/converted", "/converted"),
    "max_concurrent_requests": ("7", 7),
    "max_best_of": ("3", 3),
    "max_stop_sequences": ("0", 0),
    "max_top_n_tokens": ("9", 9),
    "max_input_tokens": ("100", 100),
    "max_total_tokens": ("200", 200),
    "max_batch_prefill_tokens": ("64", 64),
    "max_batch_total_tokens": ("4096", 4096),
    "max_client_batch_size": ("5", 5),
    "max_n": ("3", 3),
    "tokenizer_config_path": ("t.json", "t.json"),
    "v1_errors": ("openai", "openai"),
    "strict_model": ("true", True),
    "tool_call_parser": ("hermes", "hermes"),
    "reasoning_parser": ("think", "think"),
    "response_cache_bytes": ("0", 0),
    "wait_for_model_timeout": ("2.5", 2.5),
    "validation_workers": ("1", 1),
    "payload_limit": ("1000", 1000),
    "disable_grammar_support": ("true", True),
    "open_objects": ("true", True),
    "watermark_gamma": ("0.25", 0.25),
    "watermark_delta": ("-1.5", -1.5),
    "hostname": ("::1", "::1"),
    "port": ("8080", 8080),
    "cors_allow_origin": ("https://a.example", ("https://a.example",)),
    "api_key": ("s3cret", "s3cret"),
    "graceful_termination_timeout": ("2.5", 2.5),
    "json_output": ("true", True),
    "shard_uds_path": ("/run/textmill", "/run/textmill"),
    "master_addr": ("127.0.0.2", "127.0.0.2"),
    "master_port": ("29501", 29501),
}


def arguments(name: str, text: str) -> list[str]:
    flag = "--" + name.replace("_", "-")
    switches = {option.name for option in OPTIONS if option.is_switch}
    return [flag] if name in switches else [flag, text]
