"""Tells from a chat template's syntax tree whether it reads a message's content as one text, as parts, or as both."""

from jinja2 import nodes

from textmill_router.chat.message_forms import ContentForm

_CONTENT = "content"


def content_form(tree: nodes.Template) -> ContentForm:
    """Return the forms of a content that the tree reads; at least one.

    A template that loops over the content reads parts. If the template also tests whether the content is a string, the
    template reads texts too.
    """
    names = _content_names(tree)
    takes_parts = any(_is_content(_without_filters(loop.iter), names) for loop in tree.find_all(nodes.For))
    asks = any(test.name == "string" and _is_content(test.node, names) for test in tree.find_all(nodes.Test))
    return ContentForm(takes_text=asks or not takes_parts, takes_parts=takes_parts)


def _content_names(tree: nodes.Template) -> frozenset[str]:
    """Return the variables that hold a content: by their name, by an assignment, or as parameters of macros."""
    names = {_CONTENT}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, frozenset()):
            names.add(assign.target.name)
    parameters = {macro.name: [argument.name for argument in macro.args] for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in parameters:
            given = zip(parameters[call.node.name], call.args, strict=False)
            names |= {name for name, value in given if _is_content(value, frozenset())}
    return frozenset(names)


def _is_content(node: nodes.Node, names: frozenset[str]) -> bool:
    """Whether a node is `message.content`, `message['content']` or a variable that holds a content."""
    match node:
        case nodes.Getattr(attr=name):
            return bool(name == _CONTENT)
        case nodes.Getitem(arg=nodes.Const(value=name)):
            return bool(name == _CONTENT)
        case nodes.Name(name=name):
            return name in names
    return False


def _without_filters(node: nodes.Node) -> nodes.Node:
    """Return the node to which a chain of filters is applied, such as `content` in `content | selectattr(...)`."""
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    return node
