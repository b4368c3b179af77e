"""The tower of a model with images: encodes one image into rows, and gives prompts with images their positions."""

# n rows of an image, D width of the embeddings, k layers that add rows, P tokens of a prompt

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from textmill_shard.attention.base import AttentionRule
from textmill_shard.layouts.image_families import ImageFamily
from textmill_shard.layouts.image_samples import sample_image
from textmill_shard.model.media import (
    MediaFacts,
    MediaFault,
    MediaRows,
    RopePositions,
    TensorRule,
    TokenSpan,
)
from textmill_shard.probing.image_probe import NUM_PROBE_TOKENS, ImageProbe, make_image_probe
from textmill_shard.probing.probe import NO_MARKS

# Exceptions of modelling code for tensors of shapes that do not fit each other.
_CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)
_GRID = "image_grid_thw"
_IMAGE = 1  # the mark of an image's token in `mm_token_type_ids`


class ImageTower:
    """Calls `get_image_features` and `get_rope_index` of the model. The weights may stand on rank 0 alone."""

    def __init__(self, model: Any, family: ImageFamily, *, device: torch.device, dtype: torch.dtype) -> None:
        self._inner = model.base_model
        self._config = model.config
        self._family = family
        self._device = device
        self._dtype = dtype
        self._width = int(model.config.get_text_config().hidden_size)
        self._get_rope_index = getattr(self._inner, "get_rope_index", None)
        layers = getattr(model.config.vision_config, "deepstack_visual_indexes", None) or ()
        self.num_deepstack = len(layers)
        parts = tuple(f"{part}." for part in tower_parts(model))
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.num_bytes = sum(tensor.nbytes for name, tensor in tensors if f"{name}.".startswith(parts))

    @property
    def has_rope_positions(self) -> bool:
        """Whether a token has three rotary positions."""
        return self._get_rope_index is not None

    @property
    def num_probe_tokens(self) -> int:
        """The tokens of the text with an image that the probe runs."""
        return NUM_PROBE_TOKENS

    @property
    def text_marks(self) -> Mapping[str, int]:
        """The argument of the model's forward that has a number per token, with the number of a token of text."""
        marks = self._family.marks
        return NO_MARKS if marks is None else {marks.name: marks.of_text}

    def facts(self, rules: Sequence[AttentionRule]) -> MediaFacts:
        """Return the facts of a model whose layers attend by these rules."""
        windows = [rule.window_tokens or 0 for rule in rules if rule.sees_spans]
        return MediaFacts(
            kinds=(self._family.model_type,),
            row_bytes=(1 + self.num_deepstack) * self._width * self._dtype.itemsize,
            num_deepstack=self.num_deepstack,
            uncut_spans=bool(windows),
            has_rope_positions=self.has_rope_positions,
            tensor_names=self._family.tensors,
            position_tensors=(_GRID,) if self.has_rope_positions else (),
            is_prompt_span=self._family.is_prompt_span,
            max_span_tokens=min((window for window in windows if window), default=0),
        )

    def probe(self, model: Any) -> ImageProbe:
        """Return the text by which the layers of the model are examined."""
        marks = self._family.marks
        return make_image_probe(
            model,
            mark=None if marks is None else marks.name,
            of_text=0 if marks is None else marks.of_text,
            of_span=0 if marks is None else marks.of_span,
            is_prompt_span=self._family.is_prompt_span,
            num_deepstack=self.num_deepstack,
            has_rope_positions=self.has_rope_positions,
            device=self._device,
        )

    @property
    def has_weights(self) -> bool:
        """Whether this rank can encode."""
        return bool(self.num_bytes > 0)

    def sample(self, num_rows: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of an image of about so many rows."""
        return sample_image(self._config, self._family.tensors, num_rows=num_rows)

    @torch.inference_mode()
    def encode(self, tensors: Mapping[str, torch.Tensor]) -> MediaRows:
        """Return the rows of one image. Raises MediaFault for tensors that do not fit the rules or each other."""
        assert self.has_weights, "rank 0 alone has the tower"
        check_tensors(tensors, self._family.tensors)
        inputs = {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }
        try:
            has_companion = self._family.fails_for_one_row and self._has_one_row(inputs)
            if has_companion:
                inputs = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
            features = self._inner.get_image_features(**inputs, return_dict=True)
            rows_nD = self._flat(features.pooler_output[0] if has_companion else features.pooler_output)
            layers = [self._flat(rows) for rows in getattr(features, "deepstack_features", None) or ()]
        except _CALL_ERRORS as error:
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise MediaFault(f"the image cannot be encoded from {shapes} ({type(error).__name__}: {error})") from error
        if len(layers) != self.num_deepstack or any(layer.shape != rows_nD.shape for layer in layers):
            raise MediaFault(
                f"{self.num_deepstack} layers of rows {list(rows_nD.shape)} are wanted, {len(layers)} came"
            )
        deepstack_knD = torch.stack(layers) if layers else None
        for rows in (rows_nD, deepstack_knD):
            if rows is not None and not torch.isfinite(rows).all():
                raise MediaFault("the image gives embeddings that are not finite")
        return MediaRows(rows_nD, deepstack_knD)

    def rope_positions(
        self, token_ids: Sequence[int], spans: Sequence[TokenSpan], facts: Sequence[Mapping[str, torch.Tensor]]
    ) -> RopePositions:
        """Return the positions by the model's own `get_rope_index`. Raises MediaFault where grids and spans differ."""
        assert self._get_rope_index is not None, "the model has one position per token"
        ids_1P = torch.as_tensor(token_ids, dtype=torch.int64).unsqueeze(0)
        marks_1P = torch.zeros_like(ids_1P)
        for span in spans:
            marks_1P[0, span.start : span.start + span.num_tokens] = _IMAGE
        grids = [each[_GRID] for each in facts]
        try:
            found, delta = self._get_rope_index(
                ids_1P,
                mm_token_type_ids=marks_1P,
                image_grid_thw=torch.cat(grids).cpu() if grids else None,
            )
        except (*_CALL_ERRORS, StopIteration) as error:
            raise MediaFault(
                f"the grids of the images do not fit their {sum(span.num_tokens for span in spans)} tokens "
                f"({type(error).__name__}: {error})"
            ) from error
        return RopePositions(positions_3P=found[:, 0], delta=int(delta.flatten()[0]))

    def _has_one_row(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Whether the sides of the image, in pixels, hold one square of merged patches."""
        side = int(self._config.vision_config.patch_size) * int(self._config.spatial_merge_size)
        return int((inputs["image_sizes"] // side).prod()) == 1

    def _flat(self, rows: Any) -> torch.Tensor:
        """Return `[n, D]` of the rows that a model gives: a tensor per tile, or a list of them."""
        joined = rows if torch.is_tensor(rows) else torch.cat([part.reshape(-1, part.shape[-1]) for part in rows])
        return joined.reshape(-1, self._width).to(self._dtype)


def tower_parts(model: Any) -> tuple[str, ...]:
    """Return the paths of the modules and parameters that encode images, all beside the decoder and the head."""
    inner, decoder = model.base_model, model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is inner)
    modules = [name for name, module in inner.named_children() if module is not decoder]
    return tuple(f"{prefix}.{name}" for name in (*modules, *inner._parameters))


def leave_out(model: nn.Module, parts: Sequence[str]) -> None:
    """Take parts away from a rank that encodes no images."""
    for path in parts:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        if name in owner._parameters:
            owner._parameters[name] = None
        else:
            setattr(owner, name, nn.Module())


def check_tensors(tensors: Mapping[str, torch.Tensor], rules: Mapping[str, TensorRule]) -> None:
    """Raises MediaFault for a tensor that is missing, unknown, or of another kind or number of dimensions."""
    unknown = sorted(set(tensors) - set(rules))
    missing = sorted(name for name, rule in rules.items() if rule.is_required and name not in tensors)
    if unknown or missing:
        raise MediaFault(f"an image of this model has {', '.join(rules)}; unknown: {unknown}, missing: {missing}")
    for name, tensor in tensors.items():
        rule, dtype = rules[name], str(tensor.dtype).removeprefix("torch.")
        if dtype not in rule.dtypes or tensor.dim() != rule.num_dims:
            raise MediaFault(
                f"{name} has {tensor.dim()} dimensions of {dtype}, wanted are {rule.num_dims} of "
                f"{' or '.join(rule.dtypes)}"
            )
