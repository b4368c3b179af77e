"""The tables that `test_rooms.py` enforces: the folders of its room that a folder may import, and its libraries.

A file in the root of a room stands here under its own name. `EVERYTHING` marks the files that put the room together.
Folders of the same room that a row does not name, and libraries that it does not name, fail the test.
"""

EVERYTHING = frozenset({"*"})


def names(text: str) -> frozenset[str]:
    """Return the words of a row."""
    return frozenset(text.split())


# The rows stand from the bottom up, so each row names only rows above it.
ROUTER_FOLDERS = {
    "errors": names(""),
    "worker_process": names(""),
    "exit_codes": names(""),
    "bounds": names("errors"),
    "exact_json": names(""),
    "media": names("errors worker_process"),
    "media/worker": names("media"),
    "request": names("bounds media"),
    "cores": names(""),
    "file_watch": names(""),
    "log_lines": names(""),
    "logs": names("log_lines"),
    "scheduler": names("media request"),
    "adapters": names("request"),
    "extras": names(""),
    "tracing": names("extras request"),
    "kv_events": names("extras request"),
    "parsers": names("errors request"),
    "settings": names("parsers"),
    "text": names("cores errors request"),
    "grammar": names("errors exact_json request parsers worker_process"),
    "chat": names("errors media request parsers grammar text"),
    "health": names(""),
    "metrics": names("request scheduler text health"),
    "tasks": names("bounds errors request text"),
    "engine": names("errors media request scheduler adapters health metrics tasks"),
    "http": names("errors tracing"),
    "serving": names(
        "bounds errors exact_json extras file_watch media request settings scheduler adapters tracing parsers text "
        "grammar chat health metrics engine http tasks"
    ),
    "api/openai": names("bounds errors exact_json media request parsers adapters text grammar chat http serving"),
    "api/tgi": names(
        "bounds errors exact_json request text grammar chat http serving api/openai"
    ),  # openai: `chat_tokenize` alone
    "api/platforms": names("errors exact_json request settings text grammar http serving api/tgi"),
    "api/tasks": names("errors http serving tasks api/openai"),  # openai: names of models alone
    "api/openapi": names("bounds http serving api/tgi api/openai"),
    "api/playground": names("http"),
    "api": names(
        "errors health metrics http serving tasks api/tgi api/openai api/platforms api/tasks api/openapi api/playground"
    ),
    "launcher_notes": names("metrics engine"),
    "outlets": names("engine extras kv_events scheduler settings tracing"),
    "lifecycle": EVERYTHING,
    "__main__": EVERYTHING,
}

ROUTER_LIBRARIES = {
    "exact_json": names("msgspec"),
    "media": names("httptools"),
    "media/worker": names("numpy PIL transformers"),
    "scheduler": names(""),
    "tracing": names("opentelemetry"),
    "adapters": names(""),
    "kv_events": names("msgspec zmq"),
    "parsers": names(""),
    "text": names("tokenizers sentencepiece"),
    "grammar": names("llguidance msgspec jsonschema jsonschema_specifications referencing regex"),
    "chat": names("jinja2"),
    "health": names(""),
    "metrics": names("prometheus_client"),
    "tasks": names("msgspec tokenizers"),
    "engine": names("grpc textmill_proto"),
    "http": names("starlette uvicorn msgspec"),  # python-multipart by way of starlette
    "serving": names("starlette msgspec"),
    "api/openai": names("starlette msgspec"),
    "api/tgi": names("starlette msgspec"),
    "api/platforms": names("starlette msgspec"),
    "api/tasks": names("starlette msgspec"),
    "api/openapi": names("starlette msgspec"),
    "api/playground": names(""),
    "api": names("starlette msgspec"),
    "launcher_notes": names("msgspec"),
    "lifecycle": names("uvicorn"),
    "__main__": names("uvloop"),
}

# Folders that belong to the row of the folder above. The files of both may import each other, without a circle.
PARTS = {
    "parsers/tools": "parsers",
    "grammar/schema": "grammar",
    "triton_kernels/device": "triton_kernels",
}

# Folders whose files run in a process of their own, which no file of another folder imports. Their libraries change the
# environment of a process at their import, and the router's own process has none of them.
OWN_PROCESSES = {"router": names("media/worker")}

# The files of a dialect that may import another dialect, with that dialect.
DIALECTS = names("api/openai api/tgi api/platforms")
DIALECT_BRIDGES = {("api/tgi/chat_tokenize.py", "api/openai"), ("api/platforms/vertex.py", "api/tgi")}

SHARD_FOLDERS = {
    "errors": names(""),
    "log_lines": names(""),
    "logs": names("log_lines"),
    "cores": names(""),
    "device": names(""),
    "heap": names(""),
    "options": names(""),
    "settings": names("cores options"),
    "native": names(""),
    "slots": names(""),
    "distributed": names("errors native"),
    "model": names("errors distributed native"),
    "adapters": names("errors model"),
    "attention": names("errors model native"),
    "triton_kernels": names("errors model attention"),
    "probing": names("errors attention model"),
    "layers": names("heap options attention triton_kernels probing model distributed native"),
    "layouts": names("errors heap attention triton_kernels layers model probing native distributed"),
    "loader": names(
        "cores errors heap options layouts layers probing triton_kernels attention model distributed native"
    ),
    "grammar": names("slots"),
    "sampling": names("slots model native"),
    "engine": names("device slots sampling grammar model"),
    "media": names(""),
    "tasks": names("errors device heap media layers probing model native distributed loader engine"),
    "server": names("engine slots model tasks"),
    "loop_thread": names("device"),
    "gpu_steps": names("settings model"),
    "row_start": EVERYTHING,
    "lifecycle": EVERYTHING,
    "__main__": EVERYTHING,
}

SHARD_LIBRARIES = {
    "device": names("torch"),
    "native": names("torch"),
    "slots": names("numpy"),
    "distributed": names("torch transformers"),
    "model": names("torch numpy"),
    "adapters": names("torch safetensors"),
    "attention": names("torch transformers"),
    "triton_kernels": names("torch triton"),
    "probing": names("torch transformers"),
    "layers": names("torch transformers"),
    "layouts": names("torch numpy transformers"),
    "loader": names("torch numpy transformers accelerate safetensors tokenizers gguf huggingface_hub sentencepiece"),
    "grammar": names("numpy llguidance"),
    "sampling": names("torch numpy"),
    "engine": names("torch numpy"),
    "media": names("numpy PIL soundfile soxr av"),
    "tasks": names("torch numpy pandas transformers PIL"),
    "server": names("grpc numpy textmill_proto"),
    "row_start": names("torch"),
    "lifecycle": names("torch"),
}

FOLDERS = {"router": ROUTER_FOLDERS, "shard": SHARD_FOLDERS}
LIBRARIES = {"router": ROUTER_LIBRARIES, "shard": SHARD_LIBRARIES}

# Modules of the standard library that wait, ask a clock, or reach out of the process. Pure folders use none of them.
OUTSIDE = names("asyncio time datetime socket threading multiprocessing subprocess os pathlib random logging")
FORBIDDEN_STANDARD = {
    "router": {"scheduler": OUTSIDE | {"json"}, "adapters": OUTSIDE | {"json"}, "parsers": OUTSIDE},
    "shard": {"slots": OUTSIDE | {"json"}},
}
