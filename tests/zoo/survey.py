"""Tries the causal language models that transformers knows and the zoo does not list.

Each must be served with the logits of transformers, or be refused at the start. The page is written by
`python -m tests.zoo.survey > docs/other_models.md`.
"""

import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
from textmill_shard.errors import ModelError
from textmill_shard.probing.state_probe import call_with_cache
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from tests.fakes.native_cases import native_cache_folder
from tests.fakes.tiny_models import make_random_model
from tests.zoo.drive import ZooModel, load_zoo_model, reference_logits, run_zoo_model
from tests.zoo.entry import VOCAB_SIZE
from tests.zoo.shrink import tiny_config
from tests.zoo.table import ZOO

# Difference relative to the largest logit, larger than the zoo's, because no one has chosen these configs with care.
TOLERANCE = 5e-5
MAX_PARAMETERS = 20_000_000
MAX_WORDS = 300  # characters of a reason on the page

HEAD = f"""# Other models

This page is generated (`python -m tests.zoo.survey > docs/other_models.md`). It lists the types of causal language
models that transformers knows beside the types in [models.md](models.md). For each type a tiny random model is made
from the names of the fields in its config, loaded as `--model-id` would load it, and run like the models of the zoo.
*Served*: the start check accepted the model, and no logit differs from transformers' own uncached forward pass by
more than {TOLERANCE:.0e} of the largest logit, or by more than transformers' own cached forward pass differs.
*Refused*: the start ended with the sentence shown (shortened). *Not tried*: no tiny model could be made in this way.
Such a model meets the same start check, and faults that this check does not notice are unknown. BERT-like types are
made as decoders (`is_decoder`); types with images or sound run on text alone
(`--text-only`).
"""


class Outcome(Enum):
    """The outcome of a type. The last two outcomes are faults of Textmill."""

    SERVED = "served"
    REFUSED = "refused"
    NOT_TRIED = "not tried"
    WRONG = "WRONG LOGITS"
    CRASHED = "CRASHED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, with the layout, the reason or the error."""

    outcome: Outcome
    words: str
    difference: float | None = None


def other_types() -> list[str]:
    listed = {entry.type_of_config for entry in ZOO}
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - listed)


def survey(model_type: str) -> Verdict:
    """Make the model in a temporary folder, try to serve it, and return the verdict."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model = ZooModel(folder=folder, reference=_make(model_type, folder))
        except Exception as error:
            return Verdict(Outcome.NOT_TRIED, _shorten(f"{type(error).__name__}: {error}"))
        try:
            runner = load_zoo_model(model, native_cache_dir=native_cache_folder(), text_only=True)
        except ModelError as refusal:
            return Verdict(Outcome.REFUSED, _shorten(str(refusal)))
        except Exception as error:
            return Verdict(Outcome.CRASHED, _shorten(f"at the start: {type(error).__name__}: {error}"))
        try:
            result = run_zoo_model(model, runner)
        except (Exception, AssertionError) as error:
            return Verdict(Outcome.CRASHED, _shorten(f"in a step: {type(error).__name__}: {error}"))
        if result.difference <= TOLERANCE:
            return Verdict(Outcome.SERVED, runner.facts.layout, result.difference)
        theirs = _cached_difference(model.reference)
        outcome = Outcome.SERVED if result.difference <= theirs else Outcome.WRONG
        words = f"{runner.facts.layout}; transformers' own cached forward differs by {theirs:.0e}"
        return Verdict(outcome, words, result.difference)


def _cached_difference(model: Any, num_cached: int = 30, num_tokens: int = 50) -> float:
    """Return the difference between transformers with its own cache, token by token, and transformers without."""
    ids = torch.randint(0, VOCAB_SIZE, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    expected_TV = reference_logits(model, ids[0].tolist())
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    found = []
    with torch.inference_mode():
        call_with_cache(model, cache, input_ids=ids[:, :num_cached], use_cache=True)
        for position in range(num_cached, num_tokens):
            inputs = {"input_ids": ids[:, position : position + 1], "position_ids": torch.tensor([[position]])}
            found.append(call_with_cache(model, cache, **inputs, use_cache=True).logits[0, -1].float())
    return float((torch.stack(found) - expected_TV[num_cached:]).abs().max() / expected_TV.abs().max())


def _make(model_type: str, folder: Path) -> Any:
    config = tiny_config(model_type)
    with torch.device("meta"):
        num_parameters = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_config(config).parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(f"the model made has {num_parameters} parameters")
    model = make_random_model(config, folder, attn_implementation="eager")
    logits = reference_logits(model, range(20))
    if logits.shape != (20, VOCAB_SIZE) or not torch.isfinite(logits).all():
        raise ValueError(f"transformers gives logits {tuple(logits.shape)}, not all finite or of another vocabulary")
    return model


def _shorten(words: str) -> str:
    one_line = re.sub(r"\s+", " ", words).replace("|", "\\|")
    return one_line if len(one_line) <= MAX_WORDS else one_line[:MAX_WORDS].rsplit(" ", 1)[0] + " ..."


def describe(model_type: str, verdict: Verdict) -> str:
    difference = "" if verdict.difference is None else f"{verdict.difference:.0e}"
    return f"| `{model_type}` | {verdict.outcome.value} | {verdict.words} | {difference} |"


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bar()
    set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for model_type in other_types():
        rows.append(describe(model_type, survey(model_type)))
        print(rows[-1], file=sys.stderr, flush=True)
    made_with = f"Measured with transformers {transformers.__version__} and torch {torch.__version__}."
    table = ["| model_type | outcome | layout or reason | difference |", "|---|---|---|---|", *rows]
    sys.stdout.write("\n".join([HEAD, made_with, "", *table]) + "\n")


if __name__ == "__main__":
    main()
