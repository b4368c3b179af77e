"""The rows of the zoo with an encoder."""

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.zoo.entry import VOCAB_SIZE, WEIGHT_SPREAD, ZooEntry

# Relative positions end at 24 tokens, and the longest texts go beyond.
SMALL_T5 = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 24,
    "initializer_factor": 1.5,
    "pad_token_id": BEGIN_ID,
    "eos_token_id": END_ID,
    "decoder_start_token_id": BEGIN_ID,
}
SMALL_BART = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 64,
    "init_std": WEIGHT_SPREAD,
    "bos_token_id": BEGIN_ID,
    "pad_token_id": 1,
    "eos_token_id": END_ID,
    "decoder_start_token_id": END_ID,
}

ENCODERS = (
    ZooEntry("t5", SMALL_T5, "relative positions, tied head", layout="encoder_decoder"),
    ZooEntry(
        "flan-t5",
        {**SMALL_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "gated layers, a head of its own",
        model_type="t5",
        layout="encoder_decoder",
    ),
    ZooEntry(
        "mt5",
        {**SMALL_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "gated layers, a head of its own",
        layout="encoder_decoder",
    ),
    ZooEntry("umt5", SMALL_T5, "relative positions of every layer's own", layout="encoder_decoder"),
    ZooEntry("bart", SMALL_BART, "learned positions, fewer heads in the encoder", layout="encoder_decoder"),
    ZooEntry(
        "mbart",
        {**SMALL_BART, "scale_embedding": True},
        "norms before the layers, scaled embedding",
        layout="encoder_decoder",
    ),
    ZooEntry("pegasus", {**SMALL_BART, "scale_embedding": True}, "sinusoidal positions", layout="encoder_decoder"),
    ZooEntry("marian", SMALL_BART, "sinusoidal positions, a bias of the logits", layout="encoder_decoder"),
    ZooEntry("m2m_100", SMALL_BART, "sinusoidal positions that skip padding", layout="encoder_decoder"),
    ZooEntry("blenderbot", SMALL_BART, "learned positions, a norm at the end", layout="encoder_decoder"),
    ZooEntry("blenderbot-small", SMALL_BART, "learned positions, a norm of the embedding", layout="encoder_decoder"),
    ZooEntry(
        "bigbird_pegasus",
        {**SMALL_BART, "attention_type": "original_full"},
        "learned positions, full attention",
        layout="encoder_decoder",
    ),
    ZooEntry(
        "pegasus_x",
        {**SMALL_BART, "block_size": 8, "num_global_tokens": 4, "stagger_local_blocks": True},
        "an encoder that reads in blocks beside global tokens",
        layout="encoder_decoder",
    ),
    ZooEntry(
        "longt5",
        {**SMALL_T5, "local_radius": 7, "encoder_attention_type": "transient-global", "global_block_size": 8},
        "an encoder that reads in blocks beside means of blocks",
        layout="encoder_decoder",
    ),
    ZooEntry("plbart", SMALL_BART, "learned positions", layout="encoder_decoder"),
    ZooEntry("mvp", SMALL_BART, "learned positions", layout="encoder_decoder"),
)
