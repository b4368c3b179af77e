"""The flags of `textmill-bench`, read and checked at once."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from textmill_bench.dialects import DIALECTS
from textmill_bench.figures import Load

KEY_VARIABLES = ("API_KEY", "OPENAI_API_KEY")  # the first that is set counts
_SHOWN = (  # the flags that a result file shows
    *("url", "api", "model", "requests", "warmup", "input_tokens", "shared_prefix_tokens", "num_prefixes"),
    *("output_tokens", "prompts", "ignore_eos", "temperature", "seed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run measures. Sizes are in tokens, times in seconds."""

    url: str
    api: str
    model: str | None  # None: the first model of /v1/models
    api_key: str | None
    headers: tuple[tuple[str, str], ...]
    loads: tuple[Load, ...]
    requests: int  # of each load
    warmup: int
    input_tokens: int
    shared_prefix_tokens: int
    num_prefixes: int
    output_tokens: int
    prompts: Path | None
    ignore_eos: bool
    temperature: float
    seed: int
    timeout_s: float
    label: str
    output: Path | None  # a path without suffix

    def describe(self) -> dict[str, object]:
        """Return the settings for the result file: no key, and no header, because a header may be a key."""
        values = {name: getattr(self, name) for name in _SHOWN}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Two result files, and the page that shows them side by side."""

    before: Path
    after: Path
    html: Path | None


def read_options(argv: Sequence[str], environ: Mapping[str, str]) -> RunOptions | CompareOptions:
    """Return what the command line asks for. Wrong flags end the process with exit code 2 and a sentence."""
    if argv[:1] == ["compare"]:
        given = _compare_parser().parse_args(argv[1:])
        return CompareOptions(given.before, given.after, given.html)
    parser = _run_parser()
    given = parser.parse_args(argv)
    if given.shared_prefix_tokens and given.prompts is not None:
        parser.error("--shared-prefix-tokens and --prompts exclude each other: the file holds the prompts as they are")
    if given.output is not None and given.output.suffix in (".json", ".csv", ".html"):
        given.output = given.output.with_suffix("")
    rates = given.rate or ()
    loads = [Load(rate_per_s=rate) for rate in rates]
    loads += [Load(concurrency=count) for count in given.concurrency or (() if rates else (1,))]
    key = given.api_key or next((environ[name] for name in KEY_VARIABLES if environ.get(name)), None)
    return RunOptions(
        url=given.url,
        api=given.api,
        model=given.model,
        api_key=key,
        headers=tuple(given.header),
        loads=tuple(loads),
        requests=given.requests,
        warmup=given.warmup,
        input_tokens=given.input_tokens,
        shared_prefix_tokens=given.shared_prefix_tokens,
        num_prefixes=given.num_prefixes,
        output_tokens=given.output_tokens,
        prompts=given.prompts,
        ignore_eos=given.ignore_eos,
        temperature=given.temperature,
        seed=given.seed,
        timeout_s=given.timeout,
        label=given.label or (given.output.name if given.output is not None else urlsplit(given.url).netloc),
        output=given.output,
    )


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="textmill-bench",
        description="Measure a server that speaks OpenAI's dialect or that of text-generation-inference.",
        epilog="`textmill-bench compare BEFORE.json AFTER.json` shows two results side by side. Read on in "
        "docs/bench-tool.md.",
        allow_abbrev=False,
    )
    server = parser.add_argument_group("server")
    server.add_argument("--url", type=_url, default="http://127.0.0.1:3000", help="default: %(default)s")
    server.add_argument(
        "--api", choices=list(DIALECTS), default="chat", help="dialect of the requests (default: %(default)s)"
    )
    server.add_argument("--model", help="field `model` (default: the first of /v1/models)")
    server.add_argument("--api-key", help="key of the server; the variables API_KEY and OPENAI_API_KEY are read too")
    server.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="further header; repeatable",
    )
    load = parser.add_argument_group("load")
    arrival = load.add_mutually_exclusive_group()
    arrival.add_argument(
        "--concurrency",
        type=_list_of(_whole(1)),
        metavar="N,N,...",
        help="requests at once, a level each (default: 1)",
    )
    arrival.add_argument(
        "--rate", type=_list_of(_above_zero), metavar="R,R,...", help="mean Poisson arrivals per second, a level each"
    )
    load.add_argument("--requests", type=_whole(1), default=100, help="requests of each level (default: %(default)s)")
    load.add_argument("--warmup", type=_whole(0), default=2, help="requests before the first level (default: 2)")
    load.add_argument("--timeout", type=_above_zero, default=600.0, help="seconds without a byte (default: 600)")
    work = parser.add_argument_group("requests")
    work.add_argument("--input-tokens", type=_whole(1), default=256, help="tokens of each prompt's own (default: 256)")
    work.add_argument(
        "--shared-prefix-tokens", type=_whole(0), default=0, help="tokens with which prompts begin alike (default: 0)"
    )
    work.add_argument("--num-prefixes", type=_whole(1), default=1, help="different shared beginnings (default: 1)")
    work.add_argument("--prompts", type=Path, help="file of prompts, a JSON text on each line, instead of random words")
    work.add_argument("--output-tokens", type=_whole(1), default=64, help="most tokens of an answer (default: 64)")
    work.add_argument("--ignore-eos", action="store_true", help="always ask for --output-tokens tokens")
    work.add_argument("--temperature", type=_number, default=0.0, help="0 is greedy (default)")
    work.add_argument("--seed", type=_whole(0), default=0, help="of prompts and arrivals; a new one is a cold cache")
    result = parser.add_argument_group("result")
    result.add_argument("--output", type=Path, metavar="PATH", help="write PATH.json, PATH.csv and PATH.html")
    result.add_argument("--label", help="name of the run in tables and pages (default: the file's name or the host)")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="textmill-bench compare", description="Show two results side by side.", allow_abbrev=False
    )
    parser.add_argument("before", type=Path, help="JSON file of the first run")
    parser.add_argument("after", type=Path, help="JSON file of the second run")
    parser.add_argument("--html", type=Path, help="write a page with the plots of both")
    return parser


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{value!r} is no URL, wanted http:// or https:// and a host")
    return value.rstrip("/").removesuffix("/v1")


def _header(value: str) -> tuple[str, str]:
    name, colon, content = value.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is no header, wanted 'Name: value'")
    return name.strip(), content.strip()


def _whole(low: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{value!r}, wanted a whole number >= {low}")
        return number

    return parse


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{value!r}, wanted a number >= 0")
    return number


def _above_zero(value: str) -> float:
    number = _number(value)
    if number == 0.0:
        raise argparse.ArgumentTypeError(f"{value!r}, wanted a number above 0")
    return number


def _list_of(parse: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def parse_list(value: str) -> tuple[float, ...]:
        return tuple(dict.fromkeys(parse(part.strip()) for part in value.split(",")))

    return parse_list
