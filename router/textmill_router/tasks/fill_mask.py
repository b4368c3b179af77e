"""fill-mask: the tokens that fit best in the place of a mask token."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.request import token_array
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel, too_long
from textmill_router.tasks.row_results import MaskAnswer, RowResult
from textmill_router.tasks.rows import Row
from textmill_router.tasks.text_reader import token_types
from textmill_router.tasks.wishes import MaskWish

TASK = "fill-mask"
DEFAULT_TOP_K, MAX_TOP_K = 5, 1000


class FillMaskParameters(msgspec.Struct, gc=False):
    """The parameters of fill-mask."""

    top_k: int | None = None
    targets: list[str] | str | None = None


class FillMaskBody(msgspec.Struct, gc=False):
    """The body of fill-mask."""

    inputs: str | list[str]
    parameters: FillMaskParameters | None = None


@dataclass(slots=True)
class FillMaskCall:
    """A call with a row for each text."""

    model: TaskModel
    texts: Sequence[str]
    is_single: bool
    top_k: int
    target_ids: tuple[int, ...]
    notes: CallNotes
    task: str = TASK
    _rows: list[Row] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.texts)

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.texts))

    async def rows(self) -> list[Row]:
        """Tokenise. Raises ValidationFailed for a text without a mask, and for one that is too long."""
        model = self.model
        mask_id = _mask_id(model)
        most = model.room()
        for index, encoding in enumerate(await model.reader.encode(self.texts)):
            path = "inputs" if self.is_single else f"inputs[{index}]"
            if most is not None and len(encoding.ids) > most:
                raise too_long(path, len(encoding.ids), most, "shorten the text")
            whole = model.reader.finish(encoding)
            places = tuple(place for place, token in enumerate(whole.ids) if token == mask_id)
            if not places:
                token = model.reader.token_of(mask_id)
                raise ValidationFailed(f"`{path}` must have the mask token {token!r} at least once", field=path)
            wish = MaskWish(places, self.top_k, self.target_ids)
            self._rows.append(Row(token_array(whole.ids), wish, token_types(whole, model.facts.num_token_types)))
        return self._rows

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        answers = [self._fillings(row, result) for row, result in zip(self._rows, results, strict=True)]
        return Answer(answers[0] if self.is_single else answers)

    def _fillings(self, row: Row, result: RowResult) -> list[object]:
        assert isinstance(result, MaskAnswer)
        assert isinstance(row.wish, MaskWish)
        is_alone = len(row.wish.places) == 1
        of_masks: list[list[object]] = []
        for place, found in zip(row.wish.places, result.of_masks, strict=True):
            of_masks.append(
                [
                    self._filling(row.token_ids, place, token_id, score, skips_special=is_alone)
                    for token_id, score in zip(found.ids, found.scores, strict=True)
                ]
            )
        return of_masks[0] if is_alone else list(of_masks)

    def _filling(
        self, token_ids: "array[int]", place: int, token_id: int, score: float, *, skips_special: bool
    ) -> dict[str, object]:
        """Return one answer. Beside other masks the special tokens stay, or the other masks would not be seen."""
        reader = self.model.reader
        filled = token_ids[:]
        filled[place] = token_id
        return {
            "score": score,
            "token": token_id,
            "token_str": reader.text_of_ids([token_id], skips_special=False),
            "sequence": reader.text_of_ids(filled, skips_special=skips_special),
        }


def fill_mask_call(body: FillMaskBody, model: TaskModel, shapes: ClientShapes) -> FillMaskCall:
    """Apply the rules of fill-mask. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or FillMaskParameters()
    asked = DEFAULT_TOP_K if parameters.top_k is None else parameters.top_k
    if not 1 <= asked <= MAX_TOP_K:
        raise ValidationFailed(f"`parameters.top_k` must be 1 to {MAX_TOP_K}, found {asked}", field="parameters.top_k")
    inputs = body.inputs
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, str):
        model.check_count(len(texts), "inputs")
    for index, text in enumerate(texts):
        model.check_text(text, "inputs" if isinstance(inputs, str) else f"inputs[{index}]")
    notes = CallNotes()
    target_ids = _target_ids(parameters.targets, model, notes)
    top_k = min(asked, len(target_ids) or model.facts.vocab_size)
    return FillMaskCall(model, texts, isinstance(inputs, str), top_k, target_ids, notes)


def _mask_id(model: TaskModel) -> int:
    found = model.facts.mask_token_id if model.facts.mask_token_id is not None else model.reader.special.mask
    if found is None:
        raise ValidationFailed("the tokenizer of this model names no mask token (tokenizer_config.json)")
    return found


def _target_ids(targets: list[str] | str | None, model: TaskModel, notes: CallNotes) -> tuple[int, ...]:
    """Return the ids of the targets without repetition; none where the call names no targets."""
    if targets is None:
        return ()
    path = "parameters.targets"
    names = [targets] if isinstance(targets, str) else targets
    if not 1 <= len(names) <= MAX_TOP_K:
        raise ValidationFailed(f"`{path}` must hold 1 to {MAX_TOP_K} tokens, found {len(names)}", field=path)
    ids: dict[int, None] = {}
    for index, name in enumerate(names):
        found = model.reader.id_of(name)
        if found is None:
            parts = model.reader.ids_of(name[:1000])
            if not parts:
                raise ValidationFailed(f"`{path}[{index}]` has no token, found {name[:64]!r}", field=path)
            found = parts[0]
            notes.warnings.append(f"{name[:64]!r} is no token; {model.reader.token_of(found)!r} stands for it")
        if found >= model.facts.vocab_size:
            raise ValidationFailed(f"`{path}[{index}]` is no token that the model scores: {name[:64]!r}", field=path)
        ids[found] = None
    return tuple(ids)
