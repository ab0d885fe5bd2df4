"""Small models whose tokenizer has a chat template, and what it writes."""

from __future__ import annotations

import copy
from typing import Any

from test_suite.helpers.models import fresh_model

ROLE_WORDS = {"system": "w30", "user": "w31", "assistant": "w32"}
SAID = "{{ {'system': 'w30', 'user': 'w31', 'assistant': 'w32'}[message['role']] }}"
BODY = (
    f"{{% for message in messages %}} {SAID} {{{{ message['content'] }}}} w33{{% endfor %}}"
    "{% if add_generation_prompt %} w32{% endif %}"
)
TEMPLATE = "{{ bos_token }}" + BODY
"""BOS, then for each message its role, what it says and `w33`; in the end the assistant's role."""


def chat_model(name: str, template: str | None = TEMPLATE, *, with_bos: bool = True) -> Any:
    """A fresh small model with its own tokenizer, whose texts get a BOS where that is said."""
    model = fresh_model(name)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    model.tokenizer = tokenizer
    model.cfg.default_prepend_bos = with_bos
    return model


def chat(*said: str, **system: str) -> list[dict[str, str]]:
    """Messages: a system's, if there is one, then the user's and the assistant's in turn."""
    first = [{"role": "system", "content": text} for text in system.values()]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return [*first, *turns]
