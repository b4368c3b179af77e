"""Two tools, and an answer in the format of each model family that calls both of them."""

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time"}},
]
ARGUMENTS = '{"city": "東京"}'
OUTPUTS = {
    "qwen2_5": (
        f'Let me see.\n<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    ),
    "qwen3_coder": (
        "Let me see.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n東京\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
    ),
    "pythonic": '[get_weather(city="東京"), get_time()]',
    "llama3": f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}; {{"name": "get_time", "parameters": {{}}}}',
    "mistral": (
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {ARGUMENTS}}}, {{"name": "get_time", "arguments": {{}}}}]'
    ),
    "gpt_oss": (
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>"
        "<|start|>assistant to=functions.get_time<|channel|>commentary json<|message|>{}<|call|>"
    ),
    "deepseek_v31": (
        f"Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "phi4_mini": (
        f'Let me see.<|tool_call|>{{"name": "get_weather", "arguments": {ARGUMENTS}}}<|/tool_call|>'
        '<|tool_call|>{"name": "get_time", "arguments": {}}<|/tool_call|>'
    ),
    "command_r": (
        "Let me see.<|START_ACTION|>"
        f'[\n    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {ARGUMENTS}}},'
        '\n    {"tool_call_id": "1", "tool_name": "get_time", "parameters": {}}\n]<|END_ACTION|>'
    ),
    "granite": (
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {ARGUMENTS}}}, {{"name": "get_time", "arguments": {{}}}}]'
    ),
    "kimi_k2": (
        "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{ARGUMENTS}<|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{{}}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "glm45": (
        "\nLet me see.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>東京</arg_value>\n</tool_call>\n"
        "<tool_call>get_time\n</tool_call>"
    ),
    "minimax_m1": (
        f'Let me see.\n<tool_calls>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n'
        '{"name": "get_time", "arguments": {}}\n</tool_calls>'
    ),
    "minimax_m2": (
        'Let me see.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">東京</parameter>\n'
        '</invoke>\n<invoke name="get_time">\n</invoke>\n</minimax:tool_call>'
    ),
    "functools": (
        f'functools[{{"name": "get_weather", "arguments": {ARGUMENTS}}}, {{"name": "get_time", "arguments": {{}}}}]'
    ),
    None: (
        f'Let me see.\n{{"name": "get_weather", "parameters": {ARGUMENTS}}}\n{{"name": "get_time", "parameters": {{}}}}'
    ),
}
