"""The style of a path is that of the longest prefix of the path."""

import pytest
from textmill_router.http.error_responses import TGI_ERRORS
from textmill_router.http.path_style import ROOT_STYLE, PathStyle, PathStyles

V1 = PathStyle("/v1/", TGI_ERRORS, key_header="a")
MESSAGES = PathStyle("/v1/messages", TGI_ERRORS, key_header="b")


@pytest.mark.parametrize(
    ("path", "style"),
    [
        ("/v1/messages", MESSAGES),
        ("/v1/messages/batches", MESSAGES),
        ("/v1/models", V1),
        ("/v1/", V1),
        ("/v1", ROOT_STYLE),
        ("/generate", ROOT_STYLE),
        ("*", ROOT_STYLE),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_prefix_counts(path: str, style: PathStyle, order: int) -> None:
    assert PathStyles([V1, MESSAGES, V1][::order]).of(path) == style


def test_a_prefix_has_one_style() -> None:
    with pytest.raises(AssertionError, match="two styles"):
        PathStyles([V1, PathStyle("/v1/", TGI_ERRORS)])


@pytest.mark.parametrize(
    ("path", "style"), [("/llm/v1/messages", MESSAGES), ("/v1/messages", MESSAGES), ("/llmx/v1/messages", ROOT_STYLE)]
)
def test_a_path_below_the_root_path_is_read_without_that_part(path: str, style: PathStyle) -> None:
    assert PathStyles([V1, MESSAGES], "/llm").of(path) == style
