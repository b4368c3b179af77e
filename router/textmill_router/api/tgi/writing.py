"""POST / of models with an encoder that write: summarization, translation and text2text-generation.

The calls begin from the checkpoint's own values (`serving/checkpoint_defaults.py`), because users compare the texts
with the model's card.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.tgi.types import NO_OPTIONS
from textmill_router.api.tgi.writing_types import (
    SummaryAnswer,
    TextAnswer,
    TranslationAnswer,
    WritingBody,
    WritingFields,
    WritingParameters,
)
from textmill_router.api.tgi.writing_wish import read_wish
from textmill_router.api.tgi.writing_work import MakeAnswer, WritingForm, WritingWork
from textmill_router.errors import RequestError, TooManyPrompts, ValidationFailed
from textmill_router.http.inner_calls import replay
from textmill_router.http.json_body import ClientLeft, read_body
from textmill_router.http.path_style import ROOT_STYLE
from textmill_router.serving.call import refuse
from textmill_router.serving.checkpoint_defaults import read_checkpoint_writing
from textmill_router.serving.languages import LanguageCodes, read_language_codes, read_language_pair
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.text.tokenization import Tokenizer

WRITING_TASKS = ("text2text-generation", "summarization", "translation")
CONVERSATIONAL = "conversational"
# Reads the languages from the name of a task; None where the name has none.
LanguagesOf = Callable[[str], tuple[str, str] | None]
_ANSWERS: Mapping[str, MakeAnswer] = {
    "summarization": lambda text, written: SummaryAnswer(written),
    "translation": lambda text, written: TranslationAnswer(written),
    "text2text-generation": lambda text, written: TextAnswer(written),
}
# The names that errors have for the fields of a body.
_NAMES: Mapping[str, str] = {name: f"parameters.{name}" for name in WritingFields.__struct_fields__}
_NUM_SHOWN_CODES = 12
_ASKS_FOR_MORE = re.compile(rb'"(stream|details|decoder_input_details)"\s*:\s*true')


def writing_family(task: str | None) -> tuple[str, ...]:
    """Return the tasks that a model which writes text may be asked for, its own first. None: text generation."""
    if task not in WRITING_TASKS:
        return ("text-generation", CONVERSATIONAL)
    return (task, *(other for other in WRITING_TASKS if other != task), CONVERSATIONAL)


def writing_route(
    service: Service, task: str | None = None, languages_of: LanguagesOf = lambda name: None
) -> GeneratingRoute[WritingBody]:
    """Return the ASGI endpoint of a task; without one, of the server's own task.

    `languages_of` reads the languages of a translation from the task that a path names.
    """
    wanted = task or service.settings.task
    assert wanted in WRITING_TASKS
    return GeneratingRoute(
        service,
        msgspec.json.Decoder(WritingBody),
        _Prepare(wanted, Path(service.settings.model_dir), languages_of),
        ROOT_STYLE,
        reword=lambda body, error: error.reword(_NAMES),
        wait_for_model=lambda body: (body.options or NO_OPTIONS).wait_for_model,
    )


class WritingOrStream:
    """An ASGI endpoint. Calls that ask for a stream, or for details of tokens, are those of text generation."""

    def __init__(self, service: Service, *, whole: ASGIApp, stream: ASGIApp) -> None:
        self._service = service
        self._whole = whole
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._service.permits.check_open()
            data = await read_body(scope, receive, self._service.payload_limit)
        except (ClientLeft, RequestError) as error:
            await refuse(self._service, scope, send, error)
            return
        endpoint = self._stream if _ASKS_FOR_MORE.search(data) else self._whole
        await endpoint(scope, replay(data, receive), send)


class _Prepare:
    """Applies the rules of one task to a body. The files of the model are read once."""

    def __init__(self, task: str, folder: Path, languages_of: LanguagesOf) -> None:
        self._task = task
        self._languages_of = languages_of
        self._folder = folder
        self._files = read_checkpoint_writing(folder, must_fit=True)
        self._own_pair = read_language_pair(folder)
        self._codes: LanguageCodes | None = None  # of the tokenizer that `_codes_of` names
        self._codes_of: Tokenizer | None = None

    def __call__(self, body: WritingBody, call: IncomingCall) -> PreparedCall:
        parameters = body.parameters or WritingParameters()
        codes = self._language_codes(call.backend.tokenizer)
        pair = self._languages(parameters, codes, call.scope.get("path_params", {}).get("task", ""))
        named = None if pair is None or codes is not None else f"{pair[0]}_to_{pair[1]}"
        source = None if pair is None or codes is None else codes.ends(pair[0])
        target_id = None if pair is None or codes is None else codes.ids[pair[1]]
        defaults = self._files.defaults_of(self._task, named)
        wish = read_wish(parameters, defaults, call.backend, source=source, target_id=target_id)
        texts = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        most = call.service.settings.max_client_batch_size
        if not texts:
            raise ValidationFailed("`inputs` must hold at least one text, found an empty list", field="inputs")
        if len(texts) > most:
            raise TooManyPrompts(
                f"`inputs` has {len(texts)} texts, and a call has at most {most} (--max-client-batch-size); send less",
                field="inputs",
            )
        cleans = bool(parameters.clean_up_tokenization_spaces)
        work = WritingWork(WritingForm(self._task, _ANSWERS[self._task], cleans=cleans), texts, wish, call)
        num_sequences = 1 if wish.beams is not None else wish.num_sequences  # a search is one request
        return PreparedCall(work, num_sequences=len(texts) * num_sequences, streams=False)

    def _language_codes(self, tokenizer: Tokenizer) -> LanguageCodes | None:
        if self._codes_of is not tokenizer:
            self._codes, self._codes_of = read_language_codes(self._folder, tokenizer), tokenizer
        return self._codes

    def _languages(
        self, parameters: WritingParameters, codes: LanguageCodes | None, named: str
    ) -> tuple[str, str] | None:
        """Return the languages of a translation, which the model knows. Raises ValidationFailed.

        `named` is the task in the path, whose languages count as if the body had them.
        """
        source, target = parameters.src_lang, parameters.tgt_lang
        of_path = self._languages_of(named)
        if of_path is not None:
            if source not in (None, of_path[0]) or target not in (None, of_path[1]):
                raise ValidationFailed(
                    f"`parameters.src_lang` and `parameters.tgt_lang` must be those of the path, {named[:128]}, or be "
                    f"left out, found {source!r:.64} and {target!r:.64}",
                    field="parameters.src_lang",
                )
            source, target = of_path
        if source is None and target is None:
            return None
        if self._task != "translation" or source is None or target is None:
            raise ValidationFailed(
                "`parameters.src_lang` and `parameters.tgt_lang` belong together, and to translation",
                field="parameters",
            )
        if codes is not None:
            for name, code in (("src_lang", source), ("tgt_lang", target)):
                if code not in codes.ids:
                    raise ValidationFailed(
                        f"`parameters.{name}` must be one of the {len(codes.ids)} codes of the model, found "
                        f"{code[:64]!r}; some of them are {_some(codes, code)}",
                        field=f"parameters.{name}",
                    )
            return source, target
        pair = f"{source}_to_{target}"
        pairs = self._files.translations or self._own_pair
        if pair not in pairs:
            known = ", ".join(pairs) or "none; the model translates one pair, which its card names"
            raise ValidationFailed(
                f"`parameters.src_lang` and `parameters.tgt_lang` must be a pair of the model, found {pair[:64]!r}; "
                f"the pairs are {known}",
                field="parameters.src_lang",
            )
        return source, target


def _some(codes: LanguageCodes, wanted: str) -> str:
    """Return some codes, those first that begin as the wanted one does."""
    return ", ".join(sorted(codes.ids, key=lambda code: (code[:2] != wanted[:2], code))[:_NUM_SHOWN_CODES])
