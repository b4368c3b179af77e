"""Chat templates cannot leave the sandbox, and cannot take endless time or memory."""

from typing import Any

import jinja2
import pytest
from textmill_router.chat import sandbox as chat_sandbox
from textmill_router.chat.sandbox import ChatSandbox


def render(source: str, **variables: Any) -> str:
    sandbox = ChatSandbox()
    return sandbox.render(sandbox.compile(source), variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ tojson.__init__.__globals__ }}",
        "{{ ('a' * 1000000000) | length }}",
        "{{ 2 ** 100000000 }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include 'x' %}",
        "{{ lipsum() }}",
        "{{ 'a'.ljust(1000000000) | length }}",
        "{{ 'a'.center(width=1000000000) | length }}",
        "{{ ('%1000000000d' % 1) | length }}",
        "{{ ('%*d' % (1000000000, 1)) | length }}",
        "{{ '{:>1000000000}'.format(1) | length }}",
        "{{ '{:>{w}}'.format(1, w=1000000000) | length }}",
        "{{ '%1000000000d' | format(1) | length }}",
        "{{ 'a' | center(1000000000) | length }}",
        "{{ 'a' | indent(1000000000, true) | length }}",
        "{{ range(1000000) | length }}",
        "{{ '%s'.__mod__(1) }}",
    ],
)
def test_sandbox_lets_nothing_out(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, OverflowError, TypeError)):
        render(source, messages=[])


def test_sandbox_lets_ordinary_widths_be() -> None:
    assert render("{{ '{0:>5}|{1}'.format(1, 20000000) }}") == "    1|20000000"
    assert render("{{ '%5d|%s|%d' % (1, 'x', 20000000) }}{{ 7 % 3 }}") == "    1|x|200000001"
    assert render("{{ 'a'.ljust(3) }}|{{ 'a' | center(3) }}|{{ 'a\nb' | indent(2) }}") == "a  | a |a\n  b"


def test_endless_template_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "MAX_RENDER_S", 0.05)
    loops = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(jinja2.TemplateError, match="did not end"):
        render(loops)
    with pytest.raises(jinja2.TemplateError, match="did not end"):
        render("{% macro f(n) %}{% for i in range(9) %}{% set x = f(n) %}{% endfor %}{% endmacro %}" + loops)


def test_huge_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "MAX_RENDERED_CHARACTERS", 1000)
    with pytest.raises(jinja2.TemplateError, match="characters"):
        render("{% for a in range(100) %}{{ 'x' * 100 }}{% endfor %}")
