"""Prompts as messages of a chat: text by the tokenizer's own chat template, and where each role's words end in it.

Knows tokenizers and nothing of models; `tasks.tokens` makes tokens of the text, as of any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

from actpatch.core.text import shortened

Message: TypeAlias = Mapping[str, Any]
"""Who says it and what: `{"role": "user", "content": "Where is Rome?"}`; what else it holds is the template's own."""
ROLES = ("system", "developer", "user", "assistant", "tool")


def is_chat(prompt: Any) -> TypeGuard[Sequence[Message]]:
    """Whether this is a list of messages, sound or not."""
    return isinstance(prompt, (list, tuple)) and any(isinstance(message, Mapping) for message in prompt)


def one_message(text: str) -> list[Message]:
    """The text as what a user says."""
    return [{"role": "user", "content": text}]


def need_chat_template(tokenizer: Any) -> None:
    """Raises ValueError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the model's tokenizer has no chat template: give prompts as texts, or set model.tokenizer.chat_template"
        )


def chat_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The messages as one text, by the tokenizer's chat template, up to where the assistant's next words begin.

    Where the last message is the assistant's own, these go on in it: the text ends with it.

    Raises:
        ValueError: for what are no messages, a tokenizer without a chat template, and one whose template refuses them.
    """
    _check_messages(messages)
    need_chat_template(tokenizer)
    goes_on = messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # templates are programs, which fail in ways of their own
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"the tokenizer's chat template cannot write {shortened(list(messages))} ({reason}): give messages in the "
            "order and with the roles that it knows"
        ) from error


def role_positions(tokenizer: Any, messages: Sequence[Message], tokens: Sequence[int]) -> dict[str, int]:
    """Position of the last token of what each role says last: `{"USER": 9, "END": 13}`; END is the last of all.

    Only END, where that cannot be told: the tokenizer does not say where its tokens stand in a text, or the template
    writes something else than what a message says.

    Args:
        tokens: the prompt's own, BOS included.
    """
    end = {"END": len(tokens) - 1}
    if not getattr(tokenizer, "is_fast", False):
        return end
    text = chat_text(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = len(tokens) - len(encoding["input_ids"])  # a BOS that the template does not write
    if before < 0 or encoding["input_ids"] != list(tokens[before:]):
        return end
    begins = [start for start, _ in encoding["offset_mapping"]]
    found: dict[str, int] = {}
    for message, last in zip(messages, _last_characters(tokenizer, messages, text)):
        name = message["role"].upper()
        found.pop(name, None)  # in the order in which they stand
        found[name] = before + max(i for i, start in enumerate(begins) if start <= last)
    return {**found, **end}


def _last_characters(tokenizer: Any, messages: Sequence[Message], text: str) -> list[int]:
    """Where in the text the last letter of each content stands; empty where the template changes contents.

    What stands around the contents is found by writing others in their place.
    """
    marks = [f"Qz{i}zQ" for i in range(len(messages))]
    marked = chat_text(tokenizer, [{**message, "content": mark} for message, mark in zip(messages, marks)])
    pattern = "|".join(map(re.escape, marks))
    if re.findall(pattern, marked) != marks:
        return []
    around = re.split(pattern, marked)
    at, found = len(around[0]), []
    if not text.startswith(around[0]):
        return []
    for message, behind in zip(messages, around[1:]):
        written = (message["content"], message["content"].strip())  # many templates strip
        content = next((content for content in written if text.startswith(content + behind, at)), None)
        if content is None:
            return []
        found.append(at + len(content.rstrip()) - 1)
        at += len(content) + len(behind)
    return found


def _check_messages(messages: Sequence[Message]) -> None:
    example = 'expected {"role": "user", "content": "..."}'
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"message {i} of the chat is {shortened(message)}, {example}")
        if message["role"] not in ROLES:
            raise ValueError(f"message {i} has the role {message['role']!r}, expected one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"message {i} has the content {shortened(message['content'])}, expected a text")
