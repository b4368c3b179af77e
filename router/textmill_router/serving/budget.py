"""How many tokens a prompt may have, and how many may follow the prompt."""

from textmill_router.errors import OverBudget
from textmill_router.serving.limits import Limits

# A request for more new tokens than fit passes when this many fit, and its answer ends when the window is full.
CHECKED_NEW_TOKENS = 1024


def check_budget(num_prompt_tokens: int, max_new_tokens: int | None, limits: Limits) -> int:
    """Return how many output tokens the request gets, which are at most the rest of the window. Raises OverBudget."""
    room = limits.max_total_tokens - num_prompt_tokens
    wanted = room if max_new_tokens is None else max_new_tokens
    if num_prompt_tokens + max(0, min(wanted, CHECKED_NEW_TOKENS)) > limits.max_total_tokens:
        new_tokens = "`{max_new_tokens}` is not set" if max_new_tokens is None else "`{max_new_tokens}` is {wanted}"
        found = f"{{the_prompt}} has {{num_prompt_tokens}} tokens and {new_tokens}"
        raise OverBudget(
            f"`{{inputs}}` tokens + `{{max_new_tokens}}` must be <= {{max_tokens}} (--max-total-tokens): {found}; "
            "shorten `{inputs}`, set `{truncate}` or ask for less",
            field="inputs" if room <= 0 else "max_new_tokens",  # the prompt alone leaves no room
            max_tokens=limits.max_total_tokens,
            window_tokens=limits.max_total_tokens,
            found=found,
            num_prompt_tokens=num_prompt_tokens,
            wanted=max_new_tokens,
        )
    if num_prompt_tokens > limits.max_input_tokens:
        raise prompt_too_long(f"{num_prompt_tokens}", limits)
    if limits.max_output_tokens is not None:
        _check_output(max_new_tokens, limits.max_output_tokens, limits)
        room = min(room, limits.max_output_tokens)
    return min(wanted, room)


def prompt_too_long(shown_tokens: str, limits: Limits) -> OverBudget:
    """Return the refusal of a prompt that is longer than the limit, whether its tokens were counted or not."""
    return OverBudget(
        "{the_prompt} has {shown_tokens} tokens, the limit is {max_tokens} ({input_limit}), and `{inputs}` tokens + "
        "`{max_new_tokens}` must be <= {window_tokens}; shorten `{inputs}` or set `{truncate}`",
        field="inputs",
        max_tokens=limits.max_input_tokens,
        window_tokens=limits.max_total_tokens,
        found="{the_prompt} has {shown_tokens} tokens, the limit of a prompt is {max_tokens}",
        shown_tokens=shown_tokens,
        input_limit=limits.input_limit,
    )


def _check_output(max_new_tokens: int | None, max_output_tokens: int, limits: Limits) -> None:
    if max_new_tokens is None or min(max_new_tokens, CHECKED_NEW_TOKENS) <= max_output_tokens:
        return
    raise OverBudget(
        "`{field}` must be <= {max_tokens} (the positions of the decoder), found {wanted}",
        field="max_new_tokens",
        max_tokens=max_output_tokens,
        window_tokens=limits.max_total_tokens,
        found="`{max_new_tokens}` is {wanted}, the decoder has positions for {max_tokens}",
        wanted=max_new_tokens,
    )
