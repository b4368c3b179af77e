"""The table of metrics: name, kind, meaning, labels and buckets. `make metrics-page` writes `docs/metrics.md` from it.

The names that TGI has stay (`tgi_...`), so that dashboards for TGI work. Metrics that TGI lacks start with `textmill_`.
The names of vLLM (`vllm:...`) stand in a list of their own, because a flag asks for them.
"""

from dataclasses import dataclass
from enum import StrEnum


class MetricKind(StrEnum):
    """The types of the Prometheus text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric; `buckets` is the name of a set of bounds in `BUCKET_SETS`, empty for all but histograms."""

    name: str
    kind: MetricKind
    text: str
    labels: tuple[str, ...] = ()
    buckets: str = ""


BUCKET_SETS = {
    "D": "35 bounds from 0.00015 s to 145.6 s, each 1.5 times the one before",
    "I": "100 equal steps up to the longest prompt (`--max-input-tokens`)",
    "T": "100 equal steps up to the window (`--max-total-tokens`)",
    "B": "1, 2, 3 ... 1024",
}
SPECS: list[MetricSpec] = []  # in the order of the page
ROW_SPECS: list[MetricSpec] = []  # shown for a model without generation alone
VLLM_SPECS: list[MetricSpec] = []  # shown with `--metrics-alias vllm` alone


def _spec(name: str, kind: MetricKind, text: str, *, labels: tuple[str, ...] = (), buckets: str = "") -> MetricSpec:
    spec = MetricSpec(name, kind, text, labels, buckets)
    SPECS.append(spec)
    return spec


_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_METHOD = ("method",)

REQUEST_COUNT = _spec("tgi_request_count", _COUNTER, "Calls that ask for generation; each call counts once")
REQUEST_SUCCESS = _spec(
    "tgi_request_success", _COUNTER, "Calls whose generation completed, or that the response cache answered"
)
REQUEST_FAILURE = _spec(
    "tgi_request_failure",
    _COUNTER,
    "Calls that ended without their result; err is overloaded, validation, template, incomplete (a mistake of the "
    "server), generation (the shard failed the request), dropped (the client left), timeout, loading or shutting_down",
    labels=("err",),
)
REQUEST_DURATION = _spec(
    "tgi_request_duration", _HISTOGRAM, "Seconds from the arrival of a call to its end", buckets="D"
)
VALIDATION_DURATION = _spec(
    "tgi_request_validation_duration", _HISTOGRAM, "Seconds from the arrival of a call to the queue", buckets="D"
)
QUEUE_DURATION = _spec("tgi_request_queue_duration", _HISTOGRAM, "Seconds of a request in the queue", buckets="D")
INFERENCE_DURATION = _spec(
    "tgi_request_inference_duration",
    _HISTOGRAM,
    "Seconds from the moment when a request leaves the queue to its end",
    buckets="D",
)
MEAN_TIME_PER_TOKEN = _spec(
    "tgi_request_mean_time_per_token_duration",
    _HISTOGRAM,
    "Inference seconds of a request, prefill included, divided by its output tokens",
    buckets="D",
)
GENERATED_TOKENS = _spec(
    "tgi_request_generated_tokens", _HISTOGRAM, "Output tokens of each completed sequence", buckets="T"
)
INPUT_LENGTH = _spec("tgi_request_input_length", _HISTOGRAM, "Prompt tokens of each validated prompt", buckets="I")
MAX_NEW_TOKENS = _spec(
    "tgi_request_max_new_tokens", _HISTOGRAM, "Most output tokens that each validated prompt may get", buckets="T"
)
SKIPPED_TOKENS = _spec(
    "tgi_request_skipped_tokens",
    MetricKind.SUMMARY,
    "Tokens that a step gave to a request beyond the first token; 0 without speculation",
)
QUEUE_SIZE = _spec("tgi_queue_size", _GAUGE, "Requests that wait for a slot")
BATCH_NEXT_SIZE = _spec("tgi_batch_next_size", _HISTOGRAM, "Requests that entered the batch together", buckets="B")
BATCH_CURRENT_SIZE = _spec("tgi_batch_current_size", _GAUGE, "Requests that run; 0 when idle")
BATCH_CURRENT_MAX_TOKENS = _spec(
    "tgi_batch_current_max_tokens", _GAUGE, "Tokens for which KV blocks are held; 0 when idle"
)
BATCH_MAX_TOTAL_TOKENS = _spec("tgi_batch_max_total_tokens", _GAUGE, "Tokens that the KV cache holds in all")
BATCH_CONCAT = _spec(
    "tgi_batch_concat",
    _COUNTER,
    "Times that new requests joined running requests; reason is always chunking, because prompts are computed in "
    "chunks beside running requests and wait for nothing",
    labels=("reason",),
)
BATCH_CONCAT_DURATION = _spec(
    "tgi_batch_concat_duration",
    _HISTOGRAM,
    "Seconds to choose new requests and give them slots beside running requests; method is always prefill",
    labels=_METHOD,
    buckets="D",
)
BATCH_INFERENCE_COUNT = _spec(
    "tgi_batch_inference_count",
    _COUNTER,
    "Steps of the shard; method is prefill when the step computed prompt tokens, else decode",
    labels=_METHOD,
)
BATCH_INFERENCE_SUCCESS = _spec("tgi_batch_inference_success", _COUNTER, "Steps that failed no request", labels=_METHOD)
BATCH_INFERENCE_FAILURE = _spec(
    "tgi_batch_inference_failure",
    _COUNTER,
    "Steps that failed a request, and steps that were lost with the shard while requests ran",
    labels=_METHOD,
)
BATCH_INFERENCE_DURATION = _spec(
    "tgi_batch_inference_duration",
    _HISTOGRAM,
    "Seconds of a step on the shard, from the choice of its rows until its tokens are on the host",
    labels=_METHOD,
    buckets="D",
)
BATCH_FORWARD_DURATION = _spec(
    "tgi_batch_forward_duration", _HISTOGRAM, "Seconds of a step's forward pass", labels=_METHOD, buckets="D"
)
BATCH_DECODE_DURATION = _spec(
    "tgi_batch_decode_duration",
    _HISTOGRAM,
    "Seconds to turn a step's tokens into text, look for stop strings and hand the text to the answers",
    labels=_METHOD,
    buckets="D",
)
BATCH_FILTER_DURATION = _spec(
    "tgi_batch_filter_duration",
    _HISTOGRAM,
    "Seconds to read a step's result, remove requests that have ended and plan the next changes",
    labels=_METHOD,
    buckets="D",
)

TIME_TO_FIRST_TOKEN = _spec(
    "textmill_time_to_first_token_seconds",
    _HISTOGRAM,
    "Seconds from the arrival of a completed call, streamed or not, to its first token",
    buckets="D",
)
INTER_TOKEN = _spec(
    "textmill_inter_token_seconds",
    _HISTOGRAM,
    "Seconds between two tokens of a request, streamed or not, as the router receives them from the shard",
    buckets="D",
)
REQUESTS_IN_FLIGHT = _spec("textmill_requests_in_flight", _GAUGE, "Sequences that hold a permit")
REQUESTS_RUNNING = _spec("textmill_requests_running", _GAUGE, "Requests that run")
REQUESTS_WAITING = _spec("textmill_requests_waiting", _GAUGE, "Requests that wait for a slot")
WAITING_TOKENS = _spec("textmill_waiting_tokens", _GAUGE, "Tokens of the requests that wait")
REQUEST_ABORTS = _spec("textmill_request_aborts", _COUNTER, "Admitted calls whose client left before the end")
REQUEST_FINISH = _spec(
    "textmill_request_finish",
    _COUNTER,
    "Completed sequences by reason: length, eos, stop_id, stop_string",
    labels=("reason",),
)
PROMPT_TOKENS = _spec("textmill_prompt_tokens", _COUNTER, "Prompt tokens of validated prompts")
PROMPT_TOKENS_COMPUTED = _spec("textmill_prompt_tokens_computed", _COUNTER, "Prompt tokens computed by the shard")
OUTPUT_TOKENS = _spec("textmill_output_tokens", _COUNTER, "Tokens that the shard sampled")
PREFIX_HIT_TOKENS = _spec("textmill_prefix_cache_hit_tokens", _COUNTER, "Prompt tokens found in the prefix cache")
PREFIX_LOOKUP_TOKENS = _spec(
    "textmill_prefix_cache_lookup_tokens", _COUNTER, "Prompt tokens looked for in the prefix cache"
)
PREEMPTIONS = _spec(
    "textmill_preemptions", _COUNTER, "Times that a request was put back into the queue for want of KV blocks"
)
READMISSIONS = _spec(
    "textmill_readmitted_requests", _COUNTER, "Times that a request got a new slot after its shard was lost"
)
RECOMPUTED_TOKENS = _spec(
    "textmill_recomputed_tokens", _COUNTER, "Tokens of readmitted requests whose keys and values were computed again"
)
RECOVERY = _spec(
    "textmill_recovery_seconds", _HISTOGRAM, "Seconds from the loss of a shard until it serves again", buckets="D"
)
SHARD_RESTARTS = _spec(
    "textmill_shard_restarts_total",
    _COUNTER,
    "Times that the launcher started a lost group of shards again; reason is killed (by a signal), exited, hung or "
    "node (another machine was lost)",
    labels=("reason",),
)
MEMORY_FAULTS = _spec(
    "textmill_memory_faults",
    _COUNTER,
    "Steps, and parts of steps, that ran out of memory; they run again in halves, and a request without room ends",
)
STARVATIONS = _spec("textmill_starvations", _COUNTER, "Steps that a slot missed for want of blocks")
KV_BLOCKS = _spec(
    "textmill_kv_blocks",
    _GAUGE,
    "KV blocks by state: free, cached (kept for their prefix) or held (by running requests)",
    labels=("state",),
)
KV_BLOCKS_SIZE = _spec("textmill_kv_blocks_size", _GAUGE, "KV blocks in all")
KV_BLOCK_SIZE = _spec(
    "textmill_kv_block_size_tokens", _GAUGE, "Tokens whose keys and values one KV block holds; routers ask for it"
)
KV_USAGE = _spec("textmill_kv_usage_ratio", _GAUGE, "Held KV blocks divided by all, 0 to 1")
SLOTS_FREE = _spec("textmill_slots_free", _GAUGE, "Free slots of the shard")
SLOTS_SIZE = _spec("textmill_slots_size", _GAUGE, "Slots of the shard")
STEPS = _spec("textmill_steps", _COUNTER, "Steps of the shard")
EPOCHS = _spec("textmill_epochs", _COUNTER, "Times that a shard began with an empty KV pool")
SHARD_UP = _spec("textmill_shard_up", _GAUGE, "1 while the shard serves, else 0")
_REPLICA = ("replica",)
REPLICA_UP = _spec("textmill_replica_up", _GAUGE, "1 while this replica serves, else 0", labels=_REPLICA)
REPLICA_RUNNING = _spec("textmill_replica_requests_running", _GAUGE, "Requests that run here", labels=_REPLICA)
REPLICA_WAITING = _spec("textmill_replica_requests_waiting", _GAUGE, "Requests that wait here", labels=_REPLICA)
REPLICA_KV_USAGE = _spec(
    "textmill_replica_kv_usage_ratio",
    _GAUGE,
    "Held KV blocks of this replica divided by all its blocks",
    labels=_REPLICA,
)
REPLICA_OUTPUT_TOKENS = _spec(
    "textmill_replica_output_tokens", _COUNTER, "Tokens that this replica sampled", labels=_REPLICA
)
REPLICA_HIT_TOKENS = _spec(
    "textmill_replica_prefix_cache_hit_tokens", _COUNTER, "Prompt tokens found in this prefix cache", labels=_REPLICA
)
REPLICA_EPOCHS = _spec(
    "textmill_replica_epochs", _COUNTER, "Times that this replica began with an empty KV pool", labels=_REPLICA
)
MOVED_REQUESTS = _spec(
    "textmill_moved_requests", _COUNTER, "Requests of a lost replica that went on in another replica"
)
CALLER_TOKENS = _spec(
    "textmill_caller_computed_tokens",
    _COUNTER,
    "Tokens computed for a caller, who is the name of an API key or, without keys, empty; cached tokens do not count",
    labels=("caller",),
)
MEDIA_CACHE_BYTES = _spec(
    "textmill_media_cache_bytes", _GAUGE, "Bytes of the images that the shards keep, by their last heartbeats"
)
MEDIA_ENCODES = _spec(
    "textmill_media_encodes_total", _COUNTER, "Images that the shards have computed, by their heartbeats"
)
MEDIA_HITS = _spec("textmill_media_hits_total", _COUNTER, "Images that a shard kept when a request came with them")
MEDIA_PUTS = _spec("textmill_media_puts_total", _COUNTER, "Images that were sent to a shard")
MEDIA_PUT_BYTES = _spec("textmill_media_put_bytes_total", _COUNTER, "Bytes of images that were sent to a shard")
_ADAPTER = ("adapter",)
ADAPTER_REQUESTS = _spec(
    "textmill_adapter_requests_total",
    _COUNTER,
    "Admitted sequences by the name of their adapter, since the name was given; at most 256 names are shown",
    labels=_ADAPTER,
)
ADAPTER_RUNNING = _spec("textmill_adapter_running", _GAUGE, "Requests that run with this adapter", labels=_ADAPTER)
ADAPTER_WAITING = _spec("textmill_adapter_waiting", _GAUGE, "Requests of this adapter that wait", labels=_ADAPTER)
ADAPTERS_LOADED = _spec("textmill_adapters_loaded", _GAUGE, "Names of adapters that calls can ask for")
ADAPTERS_BYTES = _spec("textmill_adapters_bytes", _GAUGE, "Bytes that the loaded adapters take on a rank")
ADAPTERS_LOAD_TIME = _spec(
    "textmill_adapters_load_seconds", _HISTOGRAM, "Seconds that it took to load an adapter in all replicas", buckets="D"
)
CACHE_HITS = _spec("textmill_response_cache_hits", _COUNTER, "Calls answered from the response cache")
CACHE_MISSES = _spec(
    "textmill_response_cache_misses", _COUNTER, "Calls that the response cache could have answered, but did not hold"
)
CACHE_BYTES = _spec("textmill_response_cache_bytes", _GAUGE, "Bytes that the response cache holds")
HTTP_REQUESTS = _spec(
    "textmill_http_requests",
    _COUNTER,
    "HTTP calls; route is the path of a known route or `other`, and status 499 means that the client left before the "
    "answer began",
    labels=("route", "method", "status"),
)
HEALTH_STATE = _spec(
    "textmill_health_state",
    _GAUGE,
    "1 for the state of the server's health, 0 for the other states of `docs/health.md`",
    labels=("state",),
)
BUILD_INFO = _spec(
    "textmill_build_info", _GAUGE, "Always 1; the label version holds the version of Textmill", labels=("version",)
)


def _row_spec(name: str, kind: MetricKind, text: str, *, labels: tuple[str, ...] = (), buckets: str = "") -> MetricSpec:
    spec = MetricSpec(f"textmill_{name}", kind, text, labels, buckets)
    ROW_SPECS.append(spec)
    return spec


TASK_CALLS = _row_spec("task_calls", _COUNTER, "Calls that were answered, by the task of the call", labels=("task",))
TASK_TOKENS = _row_spec("task_tokens", _COUNTER, "Tokens of the rows of these calls", labels=("task",))
ROWS = _row_spec("rows", _COUNTER, "Rows that a shard has answered; a text, a pair of texts or a window is a row")
ROW_TOKENS = _row_spec("row_tokens", _COUNTER, "Tokens of these rows")
REPEATED_ROWS = _row_spec("repeated_rows", _COUNTER, "Rows that were sent again because their shard was lost")
ROWS_WAITING = _row_spec("rows_waiting", _GAUGE, "Rows that wait for a batch")
ROW_TOKENS_WAITING = _row_spec("row_tokens_waiting", _GAUGE, "Tokens of the rows that wait for a batch")
ROW_BATCH_SIZE = _row_spec("row_batch_size", _HISTOGRAM, "Rows of a batch", buckets="B")
ROW_BATCH_DURATION = _row_spec(
    "row_batch_duration_seconds", _HISTOGRAM, "Time from the sending of a batch until its answers", buckets="D"
)


def _vllm_spec(name: str, text: str, *further_labels: str) -> MetricSpec:
    spec = MetricSpec(f"vllm:{name}", MetricKind.GAUGE, text, ("model_name", *further_labels))
    VLLM_SPECS.append(spec)
    return spec


VLLM_RUNNING = _vllm_spec("num_requests_running", "Same value as `textmill_requests_running`")
VLLM_WAITING = _vllm_spec("num_requests_waiting", "Same value as `textmill_requests_waiting`")
VLLM_KV_USAGE = _vllm_spec("kv_cache_usage_perc", "Same value as `textmill_kv_usage_ratio`: 0 to 1, despite the name")
VLLM_LORA_INFO = MetricSpec(
    "vllm:lora_requests_info",
    MetricKind.GAUGE,
    "The seconds since 1970; the labels hold the names of adapters whose requests run and wait, between commas, and "
    "how many adapters may run at once, which is how many are loaded. Left out while none is loaded",
    ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
)
VLLM_SPECS.append(VLLM_LORA_INFO)
VLLM_CACHE_CONFIG = _vllm_spec(
    "cache_config_info",
    "Always 1; the labels hold the values of `textmill_kv_block_size_tokens` and `textmill_kv_blocks_size`",
    "block_size",
    "num_gpu_blocks",
)
