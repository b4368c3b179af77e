"""Takes out the blanks that word tokenizers leave before punctuation and in short forms of English verbs."""

# The pairs are those of transformers' `clean_up_tokenization`, in its order.
_SHORTER = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_text(text: str) -> str:
    """Return the text without these blanks."""
    for long, short in _SHORTER:
        text = text.replace(long, short)
    return text
