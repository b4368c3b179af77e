"""The layout of models with an encoder: texts are encoded one by one, and all decoders run in one batch."""

from typing import Any

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layers.adapted_modules import AdaptedModules
from textmill_shard.layouts.adaptable import adaptable_linears
from textmill_shard.layouts.encoder_decoder import EncoderDecoder
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions, weight_bytes
from textmill_shard.layouts.row_positions import RowPositions
from textmill_shard.probing.cache_probe import probe_encoder_decoder
from textmill_shard.probing.call_observer import CallObserver
from textmill_shard.probing.start_check import CALL_ERRORS, PROBE_ENCODER_LENS


def arrange_encoder_decoder(filled: FilledModel, options: LayoutOptions) -> Layout:
    """Return the layout. Raises UnsupportedModelError with the reason why the model cannot run so."""
    model = filled.model
    _check_reads_alone(model.config)
    with CallObserver(model) as calls:
        finding = probe_encoder_decoder(model, texts=filled.texts, encoder_lens=PROBE_ENCODER_LENS)
    linears = adaptable_linears(filled, calls)
    calls.forget()
    pad_id = getattr(model.config, "pad_token_id", None)
    try:
        positions = RowPositions(
            model.get_decoder(),
            num_positions=filled.max_tokens,
            text_id=next(token_id for token_id in range(2) if token_id != pad_id),
            device=filled.device,
        )
    except CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"models of type {model.config.model_type} cannot be served yet: the positions of their decoders cannot be "
            f"told ({type(error).__name__}: {error})"
        ) from error
    adapters = AdaptedModules(
        model, tuple(linears), device=filled.device, kernels=options.kernels, device_kernels=options.device_kernels
    )
    decoder = EncoderDecoder(model, positions, adapters, num_layers=len(finding.specs), device=filled.device)
    return Layout(
        "encoder_decoder",
        decoder,
        finding.specs,
        finding.logits_V_by_text,
        weight_bytes(model),
        adapters=adapters,
        linears=linears,
    )


def _check_reads_alone(config: Any) -> None:
    """Raises UnsupportedModelError for block-sparse attention, which short texts in the start check would not show."""
    if getattr(config, "attention_type", None) == "block_sparse":
        raise UnsupportedModelError(
            f"models of type {config.model_type} with block-sparse attention cannot be served: a short text switches "
            "their encoders to full attention for all that come after it; `attention_type` can be `original_full`"
        )
