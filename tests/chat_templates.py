"""Small chat templates in the styles of the common families, over the byte tokenizer; each as its family writes turns.

What differs between them is what the driver must get right: the end mark, white space behind it, a default system
message, trimmed contents, tools and calls of them, the role of tools' answers, and thoughts that older replies lose.
"""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.fakes import byte_tokenizer

CHATML = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# With the date, tools in the first message of the user, and calls as bare JSON, one at a time.
LLAMA32 = """\
{{- '<|begin_of_text|>' -}}
{%- if messages[0].role == 'system' -%}
{%- set system_message = messages[0].content | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system_message = '' -%}{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + ('Environment: ipython\\n' if tools else '') -}}
{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + system_message + '<|eot_id|>' -}}
{%- if tools -%}
{{- '<|start_header_id|>user<|end_header_id|>\\n\\nRespond in the format {"name": function name, "parameters": ' -}}
{{- 'dictionary of argument name and its value}.\\n\\n' -}}
{%- for tool in tools -%}{{- tool | tojson(indent=4) + '\\n\\n' -}}{%- endfor -%}
{{- messages[0].content | trim + '<|eot_id|>' -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if m.tool_calls is defined -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('only single tool-calls at once') }}{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' -}}
{{- call.arguments | tojson + '}<|eot_id|>' -}}
{%- elif m.role == 'tool' -%}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' -}}
{%- else -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

_TOOLS = """\
{%- if tools -%}
{{ '<|im_start|>system\\n' + (messages[0].content + '\\n' if messages[0].role == 'system' else '') + 'Tools:' }}
{%- for tool in tools -%}{{ '\\n' + (tool | tojson) }}{%- endfor -%}{{ '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' -%}
{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif -%}"""

_CALLS = """\
{%- for call in m.tool_calls or [] -%}
{{ '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}"""

_TOOL_MESSAGE = """\
{%- elif m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

QWEN25 = f"""\
{_TOOLS}
{{%- for m in messages -%}}
{{%- if m.role in ('user', 'assistant') -%}}
{{{{ '<|im_start|>' + m.role + '\\n' + m.content }}}}
{_CALLS}
{_TOOL_MESSAGE}"""

# The last reply has a block of thought, an empty one if need be; it goes once a message follows.
QWEN3 = f"""\
{_TOOLS}
{{%- set query = namespace(last=0) -%}}
{{%- for m in messages -%}}
{{%- if m.role == 'user' -%}}{{%- set query.last = loop.index0 -%}}{{%- endif -%}}
{{%- endfor -%}}
{{%- for m in messages -%}}
{{%- if m.role == 'user' -%}}
{{{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}}}
{{%- elif m.role == 'assistant' -%}}
{{{{ '<|im_start|>assistant\\n' }}}}
{{%- if loop.last and loop.index0 > query.last -%}}
{{{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}}}
{{%- endif -%}}
{{{{ m.content }}}}
{_CALLS}
{_TOOL_MESSAGE}"""

# Turns alternate, another role is refused, and the end of a turn is not the tokenizer's end token.
STRICT = """\
{{- '<bos>' -}}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role not in ('user', 'assistant') -%}
{{ raise_exception('roles must alternate user/assistant') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
TEMPLATES = {
    # name: template, end of a turn, end token of the tokenizer, further marks
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
    "llama3": (LLAMA3, "<|eot_id|>", "<|eot_id|>", _HEADERS),
    "llama3.2": (LLAMA32, "<|eot_id|>", "<|eot_id|>", _HEADERS),
    "qwen2.5": (QWEN25, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
    "qwen3": (QWEN3, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
    "strict": (STRICT, "<end_of_turn>", "<eos>", ("<bos>", "<start_of_turn>")),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a family's template and marks."""
    template, end, eos, marks = TEMPLATES[name]
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in {end: 0, eos: 0, **dict.fromkeys(marks)}])
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer
