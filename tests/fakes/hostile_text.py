"""An answer that tries to run code, to leave the page and to stop the browser."""

HOSTILE_TEXT = "\n\n".join(
    [
        "# Hostile *Markdown*",
        "<script>globalThis.owned = 'script'</script>",
        "<img src=x onerror=\"globalThis.owned = 'img'\">",
        "<svg onload=\"owned='svg'\"><a href=\"javascript:globalThis.owned='svg a'\"><text>x</text></a></svg>",
        '<iframe srcdoc="<script>parent.owned = 1</script>"></iframe>',
        '<form action="https://evil.example"><input name=a></form>',
        '<style>body { display: none }</style><p style="position:fixed" onclick="globalThis.owned = \'p\'">styled</p>',
        "[click](javascript:globalThis.owned='link') [encoded](jav&#x61;script:globalThis.owned='entity') "
        "[data](data:text/html,<script>globalThis.owned=1</script>) [good](https://good.example/a?b=1&c=2)",
        '![picture](https://evil.example/pixel.png "t\\" onload=globalThis.owned=1")',
        "![x](javascript:globalThis.owned='image')",
        "<https://good.example/auto> <javascript:globalThis.owned=2>",
        '```html\n<script>globalThis.owned = "code"</script>\n```',
        "`<b>inline</b>`",
        "|"
        + " a |" * 60
        + "\n|"
        + "---|" * 60
        + "\n"
        + ("|" + " <b onmouseover=globalThis.owned=3>x</b> |" * 60 + "\n") * 2,
        "> " * 60 + "deep",
        "\n".join("  " * level + "- item" for level in range(40)),
        "The end of the text.",
    ]
)
