"""One run: learns how the server counts, warms it up, and sends the requests of each load."""

import os
from collections.abc import Callable

import httpx

from textmill_bench.arrivals import SendNext, closed_loop, open_loop
from textmill_bench.client import Record, send
from textmill_bench.dialects import Dialect, Sampling, Wish, dialect_of, first_model
from textmill_bench.errors import BenchError
from textmill_bench.figures import Load, figures_of
from textmill_bench.options import RunOptions
from textmill_bench.progress import Progress
from textmill_bench.prompts import FilePrompts, PromptMaker, PromptShape, WordRate, rate_of, read_prompts
from textmill_bench.results import Level

PROBE_WORDS = (16, 116)  # of the two requests that show how many tokens a word has
CONNECT_TIMEOUT_S = 10.0
# Takes the outcome of each level as soon as the level has ended.
OnLevel = Callable[[Level, list[Record]], None]


async def measure(options: RunOptions, progress: Progress, on_level: OnLevel) -> None:
    """Measure all loads. Raises BenchError where the server does not answer at all, or the prompts cannot be read."""
    file_prompts = None if options.prompts is None else read_prompts(options.prompts)
    async with _client(options) as client:
        model = options.model or await _model_of(client, options.api)
        sampling = Sampling(model=model, temperature=options.temperature, ignore_eos=options.ignore_eos)
        dialect = dialect_of(options.api, sampling)
        prompts: FilePrompts | PromptMaker
        if file_prompts is not None:
            await _check(client, dialect, Wish(file_prompts[0], 1))
            prompts = FilePrompts(file_prompts)
        else:
            shape = PromptShape(
                num_tokens=options.input_tokens,
                num_shared_tokens=options.shared_prefix_tokens,
                num_prefixes=options.num_prefixes,
            )
            prompts = PromptMaker(shape, await _word_rate(client, dialect, options), options.seed)

        async def send_next(due_s: float | None) -> Record:
            return await send(client, dialect, Wish(prompts.next(), options.output_tokens), due_s)

        for _ in range(options.warmup):
            await send_next(None)
        for load in options.loads:
            on_level(*await _measure_load(load, options, progress, send_next))


async def _measure_load(
    load: Load, options: RunOptions, progress: Progress, send_next: SendNext
) -> tuple[Level, list[Record]]:
    records: list[Record] = []

    def on_record(record: Record) -> None:
        records.append(record)
        progress.note(record)

    progress.begin(load, options.requests)
    before = os.times()
    count = options.requests
    if load.concurrency is not None:
        await closed_loop(send_next, on_record, concurrency=load.concurrency, num_requests=count)
    else:
        assert load.rate_per_s is not None
        await open_loop(send_next, on_record, rate_per_s=load.rate_per_s, num_requests=count, seed=options.seed)
    after = os.times()
    progress.end()
    client_cpu_s = after.user + after.system - before.user - before.system
    return Level(load, figures_of(records, client_cpu_s=client_cpu_s)), records


def _client(options: RunOptions) -> httpx.AsyncClient:
    """Return a client without limits of its own, because a limit would hide load from the server."""
    key = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
    return httpx.AsyncClient(
        base_url=options.url,
        headers={**key, **dict(options.headers)},
        timeout=httpx.Timeout(options.timeout_s, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def _model_of(client: httpx.AsyncClient, api: str) -> str:
    """Return the name of the first model that the server lists; the dialect of TGI names none."""
    if api == "tgi":
        return ""
    try:
        answer = await client.get("/v1/models")
    except httpx.HTTPError as error:
        raise BenchError(f"{client.base_url} does not answer: {type(error).__name__}: {error}") from None
    if answer.status_code != 200:
        raise BenchError(
            f"/v1/models answers {answer.status_code}: {answer.text[:200]}; give --model, and a key if one is needed"
        )
    try:
        return first_model(answer.json())
    except ValueError:
        raise BenchError("/v1/models answers no JSON: give --model") from None


async def _word_rate(client: httpx.AsyncClient, dialect: Dialect, options: RunOptions) -> WordRate:
    """Return how many tokens the server counts for our words; one for each where the server counts none."""
    maker = PromptMaker(PromptShape(num_tokens=1), WordRate(), options.seed)
    samples = []
    for num_words in PROBE_WORDS:
        record = await _check(client, dialect, Wish(maker.words(num_words), 1))
        if record.num_prompt_tokens is None:
            return WordRate()
        samples.append((num_words, record.num_prompt_tokens))
    return rate_of(samples)


async def _check(client: httpx.AsyncClient, dialect: Dialect, wish: Wish) -> Record:
    """Send one request. Raises BenchError where the server does not take it: no further request would fare better."""
    record = await send(client, dialect, wish)
    if record.status != 200:
        what = f"answers {record.status}" if record.status else "does not answer"
        raise BenchError(f"{client.base_url.join(dialect.path)} {what}: {record.error}")
    return record
