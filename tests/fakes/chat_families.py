"""The chat templates of known families, rendered here and by transformers."""

from typing import Any

from textmill_router.chat.prompt import ChatRequest, make_prompt
from textmill_router.chat.template import ChatTemplates
from textmill_router.serving.service import make_role_safety
from textmill_router.text.tokenization import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.fakes.chat_templates import BEGIN, END, make_family_tokenizer, template_source


class Family:
    """A template with its vocabulary, for the router's code and for transformers."""

    def __init__(self, name: str) -> None:
        self.library = make_family_tokenizer(name)
        self.reference = PreTrainedTokenizerFast(
            tokenizer_object=self.library, bos_token=BEGIN, eos_token=END, chat_template=template_source(name)
        )
        templates = ChatTemplates({"default": template_source(name)}, {"bos_token": BEGIN, "eos_token": END})
        self.template = templates.pick(has_tools=False)
        tokenizer = Tokenizer(self.library, "", BEGIN, END)
        self.safety = make_role_safety(tokenizer, templates)
        tokenizer.close()

    def pieces(self, **chat: Any) -> tuple[str, ...]:
        return make_prompt(self.template, ChatRequest(**chat), self.safety).pieces

    def ids(self, **chat: Any) -> list[int]:
        return [token for piece in self.pieces(**chat) for token in self.library.encode(piece).ids]

    def reference_prompt(self, *, tokenize: bool, **chat: Any) -> Any:
        goes_on = chat.get("continue_final_message", False)
        return self.reference.apply_chat_template(
            chat["messages"],
            tools=chat.get("tools"),
            add_generation_prompt=not goes_on and chat.get("add_generation_prompt", True),
            continue_final_message=goes_on,
            tokenize=tokenize,
            return_dict=False,
            **chat.get("variables", {}),
        )
