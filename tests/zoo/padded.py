"""The rows of the zoo with attention code of their own."""

from tests.zoo.entry import SMALL, SMALL_GPT, WEIGHT_SPREAD, WINDOW, ZooEntry

PADDED = (
    ZooEntry(
        "bloom",
        {**SMALL, "n_layer": 2, "n_head": 4},
        "alibi, norm of the embedding",
        layout="padded",
    ),
    ZooEntry(
        "mpt",
        {**SMALL, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
        "alibi",
        layout="padded",
    ),
    ZooEntry(
        "falcon",
        {**SMALL, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        "grouped keys and values, parallel residual, rotary positions",
        layout="padded",
    ),
    ZooEntry(
        "falcon, alibi",
        {**SMALL, "alibi": True, "new_decoder_architecture": False, "multi_query": True, "bias": True},
        "one key/value head, alibi",
        model_type="falcon",
        layout="padded",
        attention="sdpa",  # eager attention of transformers 5.23 adds alibi twice, in mask and scores
        neutral=({"alibi": False},),
    ),
    ZooEntry(
        "gptj", {**SMALL_GPT, "rotary_dim": 8}, "neighbouring pairs of a part of each head rotate", layout="padded"
    ),
    ZooEntry(
        "gpt_neo",
        {
            **SMALL,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
        "windows by a mask of its own",
        layout="padded",
        neutral=({"attention_types": [[["global", "global"], 1]]},),
    ),
    ZooEntry("codegen", {**SMALL_GPT, "rotary_dim": 8}, "query, key and value interleaved", layout="padded"),
    ZooEntry(
        "xglm",
        {**SMALL, "d_model": 64, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4, "init_std": WEIGHT_SPREAD},
        "sinusoidal positions, scaled embedding",
        layout="padded",
    ),
)
