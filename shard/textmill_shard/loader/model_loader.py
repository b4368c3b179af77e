"""Makes of a model folder a runner: config, model on `meta`, weights of this rank, layout, facts."""

import logging
import time
from dataclasses import replace

import torch

from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import BackendRefused, ModelFilesError, UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.layouts.attempts import DECODER_ATTEMPTS, ENCODER_ATTEMPTS
from textmill_shard.layouts.attention_choice import choose_attention
from textmill_shard.layouts.image_families import family_of
from textmill_shard.layouts.image_tower import ImageTower
from textmill_shard.layouts.layout import FilledModel, Layout, LayoutOptions
from textmill_shard.layouts.rope_tables import find_rope_border, fix_dynamic_tables, longest_dynamic_total
from textmill_shard.loader.adapter_targets import find_targets
from textmill_shard.loader.encoder_facts import find_encoder_facts, reads_with_encoder
from textmill_shard.loader.kv_type import check_kv_type, use_kv_type
from textmill_shard.loader.layout_choice import Choice, choose_layout
from textmill_shard.loader.load_options import LoadOptions, OnProgress
from textmill_shard.loader.model_config import auto_class_of, check_divisible, max_model_tokens, pick_dtype, read_config
from textmill_shard.loader.model_files import find_tokenizer_digest, find_weight_files
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.loader.stored_form import find_stored_form
from textmill_shard.loader.stored_kv_scales import ScaleSource, read_kv_scales
from textmill_shard.loader.token_ids import EndIds, check_padding_id, find_end_ids, warn_of_suppressed
from textmill_shard.model.media import MediaFacts
from textmill_shard.model.runner import ModelFacts, ModelRunner, RowKernels
from textmill_shard.model.shared_vocabulary import SharedVocabulary
from textmill_shard.native.kernels import DTYPES as NATIVE_DTYPES
from textmill_shard.native.kernels import Kernels, load_kernels
from textmill_shard.probing.start_check import PROBE_TEXTS, can_project, check_against_probe, check_image_against_probe
from textmill_shard.triton_kernels.flash_backend import kernels_of
from textmill_shard.triton_kernels.paged_backend import PagedAttention

log = logging.getLogger(__name__)

LAYOUTS_WITH_BACKENDS = ("flat", "state")  # the others attend in the model's own code


def load_model(options: LoadOptions, on_progress: OnProgress, parallel: TensorParallel | None = None) -> ModelRunner:
    """Return a runner that still needs `allocate_kv`. Raises ModelError with a sentence for the operator."""
    started = time.monotonic()
    on_progress("config", 0.0)
    source = _read(options, parallel or TensorParallel())
    end_ids = find_end_ids(source.folder)
    kernels = _load_kernels(options, source)
    attention = choose_attention(
        options.attention_backend,
        device=source.device,
        dtype=source.dtype,
        block_size=options.block_size,
        kernels=kernels,
        kv_type=options.kv_cache_dtype,
    )
    choice = choose_layout(
        ENCODER_ATTEMPTS if reads_with_encoder(source.config) else DECODER_ATTEMPTS,
        LayoutOptions(
            num_slots=options.num_slots,
            parallel=source.parallel,
            kernels=kernels,
            attention=attention,
            wants_native_decoder=options.native_decoder,
            disabled_swaps=options.disabled_swaps,
        ),
        fill=lambda: _fill(source, on_progress),
        make_runner=lambda filled, layout: _make_runner(
            filled,
            layout,
            options=options,
            source=source,
            end_ids=end_ids,
            kernels=kernels,
            device_scans=kernels_of(attention),
            has_fixed_attention=isinstance(attention, PagedAttention),
        ),
    )
    if options.attention_backend is not None and choice.layout.name not in LAYOUTS_WITH_BACKENDS:
        raise BackendRefused(
            f"--attention-backend {options.attention_backend}: models of type {source.config.model_type} attend in "
            "their own code: leave the flag out"
        )
    runner = choice.runner
    end_ids.log_others(runner.facts.vocab_size)
    warn_of_suppressed(source.folder)
    runner.facts = replace(runner.facts, can_project=can_project(runner, texts=choice.filled.texts))
    check_kv_type(options.kv_cache_dtype, runner)
    stored = read_kv_scales(
        choice.filled.model,
        ScaleSource(source.folder, source.config, source.files, source.parallel),
        runner.facts.kv_specs,
        kv_type=options.kv_cache_dtype,
        device=runner.device,
    )
    use_kv_type(options.kv_cache_dtype, runner, stored=stored)
    trim_heap()
    on_progress("warmup", 1.0)
    _log_loaded(choice, kernels, attention.name, load_s=time.monotonic() - started)
    return runner


def _read(options: LoadOptions, parallel: TensorParallel) -> ModelSource:
    config = read_config(options.model_dir, trust_remote_code=options.trust_remote_code)
    check_padding_id(config, options.model_dir)
    family = family_of(config, text_only=options.text_only)
    device = torch.device(options.device)
    dtype: torch.dtype = getattr(torch, pick_dtype(options.dtype, config=config, device=device))
    form = find_stored_form(config, options.model_dir, num_ranks=parallel.world_size)
    files = find_weight_files(
        options.model_dir,
        allow_pickle=options.allow_pickle,
        named=getattr(config, "transformers_weights", None),
    )
    if parallel.world_size > 1:
        check_divisible(config)
    return ModelSource(
        folder=options.model_dir,
        config=config,
        files=files,
        form=form,
        dtype=dtype,
        device=device,
        parallel=parallel,
        trust_remote_code=options.trust_remote_code,
        auto_class=auto_class_of(config, takes_images=family is not None),
        text_only=options.text_only,
        family=family,
        stores_keys=True,
        wants_tower=parallel.rank == 0 and not options.text_only,
    )


def _load_kernels(options: LoadOptions, source: ModelSource) -> Kernels | None:
    if options.native_cache_dir is None or source.device.type != "cpu" or source.dtype not in NATIVE_DTYPES:
        return None
    return load_kernels(options.native_cache_dir, num_threads=options.num_threads)


def _fill(source: ModelSource, on_progress: OnProgress) -> FilledModel:
    """Return the model with its weights. Raises ModelError."""
    config = source.config
    on_progress("weights", 0.0)
    filling = fill_model(build_model(source), source, on_progress=lambda share: on_progress("weights", share))
    model = filling.model
    on_progress("warmup", 0.0)
    encoder = find_encoder_facts(source.folder, config, model) if reads_with_encoder(config) else None
    max_tokens = longest_dynamic_total(config) or max_model_tokens(config)
    if encoder is not None:
        max_tokens = encoder.max_decoder_tokens
    fix_dynamic_tables(model, max_tokens=max_tokens)
    vocab_size = int(config.get_text_config().vocab_size)
    family = source.family
    return FilledModel(
        model,
        texts=tuple(torch.tensor(text, device=source.device) % vocab_size for text in PROBE_TEXTS),
        device=source.device,
        max_tokens=max_tokens,
        rope_border=find_rope_border(config),
        decoder_prompt_ids=() if encoder is None else encoder.decoder_prompt_ids,
        max_encoder_tokens=0 if encoder is None else encoder.max_encoder_tokens,
        linears=filling.linears,
        num_divided_layers=filling.num_divided_layers,
        tower=None
        if family is None or source.text_only
        else ImageTower(model, family, device=source.device, dtype=source.dtype),
    )


def _make_runner(
    filled: FilledModel,
    layout: Layout,
    *,
    options: LoadOptions,
    source: ModelSource,
    end_ids: EndIds,
    kernels: Kernels | None,
    device_scans: RowKernels | None,
    has_fixed_attention: bool,
) -> ModelRunner:
    """Return the runner of a layout.

    Raises UnsupportedModelError where the layout's results differ from the model's, and ModelFilesError for a model
    whose own results are no numbers.
    """
    if any(logits_V.isnan().any() for logits_V in layout.logits_V_by_text):
        raise ModelFilesError(
            f"{source.folder} holds a model whose logits for a plain text are no numbers (NaN): its weights are "
            f"damaged, or too large for {str(source.dtype).removeprefix('torch.')} (--dtype)"
        )
    image, media = None, None
    if filled.tower is not None:
        image, _ = filled.probe()
        media = filled.tower.facts([layer.rule for layer in image.layers])
        _check_spans(media, source)
    vocab_size = int(layout.logits_V_by_text[0].shape[-1])
    facts = ModelFacts(
        model_type=str(source.config.model_type),
        dtype=str(source.dtype).removeprefix("torch."),
        device=source.device.type,
        vocab_size=vocab_size,
        eos_token_ids=end_ids.within(vocab_size),
        max_model_tokens=_longest_text(filled.max_tokens, media),
        weight_bytes=layout.weight_bytes,
        tokenizer_digest=find_tokenizer_digest(source.folder),
        block_size=options.block_size,
        kv_specs=layout.kv_specs,
        can_project=False,
        layout=layout.name,
        state_bytes=0 if layout.states is None else layout.states.num_bytes,
        rope_border=filled.rope_border,
        decoder_prompt_ids=filled.decoder_prompt_ids,
        max_encoder_tokens=filled.max_encoder_tokens,
    )
    runner = ModelRunner(
        model=filled.model,
        decoder=layout.decoder,
        facts=facts,
        parallel=source.parallel,
        targets=find_targets(filled.model, layout.linears, dtype=source.dtype),
        adapters=layout.adapters,
        kernels=kernels,
        device_scans=device_scans,
        has_fixed_attention=has_fixed_attention,
        media=media,
        tower=filled.tower,
        vocabulary=None
        if layout.vocabulary_sizes is None
        else SharedVocabulary(source.parallel, layout.vocabulary_sizes),
        states=layout.states,
    )
    check_against_probe(
        runner,
        texts=filled.texts,
        expected_V_by_text=layout.logits_V_by_text,
        routes_by_text=layout.routes_by_text,
    )
    if image is not None:
        check_image_against_probe(runner, image)
    return runner


def _check_spans(media: MediaFacts, source: ModelSource) -> None:
    """Raises UnsupportedModelError for images that reach beyond the window of a layer in which their tokens meet."""
    assert source.family is not None
    num_tokens = source.family.num_span_tokens(source.config)
    if 0 < media.max_span_tokens < num_tokens:
        raise UnsupportedModelError(
            f"{source.folder / 'config.json'} gives each image {num_tokens} tokens, which see each other, and a layer "
            f"a window of {media.max_span_tokens}: attention computes no longer image"
        )


def _longest_text(max_tokens: int, media: MediaFacts | None) -> int:
    """Return the longest text in tokens, 0 = unbounded. A prompt that is one span is not longer than the window."""
    if media is None or not media.is_prompt_span or not media.max_span_tokens:
        return max_tokens
    return min(max_tokens or media.max_span_tokens, media.max_span_tokens)


def _log_loaded(choice: Choice, kernels: Kernels | None, attention: str, *, load_s: float) -> None:
    facts, swaps = choice.runner.facts, choice.layout.swaps
    log.info(
        "model loaded",
        extra={
            "model_type": facts.model_type,
            "dtype": facts.dtype,
            "weight_bytes": facts.weight_bytes,
            "num_attention_layers": len(facts.kv_specs),
            "num_divided_layers": choice.filled.num_divided_layers,
            "native_kernels": None if kernels is None else kernels.features,
            "layout": facts.layout,
            "attention": attention if facts.layout in LAYOUTS_WITH_BACKENDS else "the model's own",
            "native_decoder": "yes" if choice.why_not_native is None else f"no: {choice.why_not_native}",
            "module_swaps": ", ".join(f"{name} {count}" for name, count in swaps.items()) or "none",
            "load_s": round(load_s, 3),
        },
    )
