"""Chat templates: what the model reads is what it was given, within a budget."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models import chat
from tests.conftest import make_tokenizer

USER = [("user", "what is a tide")]
TALK = [
    ("system", "Be  brief."),
    ("user", "What is\n a tide?"),
    ("assistant", "<b>Water & moon</b>."),
    ("user", "Why?"),
]
LOOP = "{% for m in messages %}[{{ m['role'] }}] BODY\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def rendered(
    tokenizer: Any, template: Any, messages: Sequence[chat.Message] = TALK, **arguments: Any
) -> str:
    tokenizer.chat_template = template
    (text,) = chat.render(tokenizer, [messages], arguments)
    return text


# ---------------------------------------------------------------- every message is in the text

WHOLE = {
    "as it is": "{{ m['content'] }}",
    "stripped": "{{ m.content | trim }}",
    "escaped": "{{ m.content | e }}",
    "as JSON": "{{ m.content | tojson }}",
    "by letters": "{% for letter in m.content %}{{ letter }}{% endfor %}",
    "without reasoning": "{{ m.content.split('</think>')[-1] }}",
    "of parts": "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}",
    "of the first part": "{{ m['content'][0]['text'] }}",
    "of either": "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
    "of filtered parts": "{{ (m.content | selectattr('type', 'equalto', 'text') | list)[0].text }}",
}


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE.keys())
def test_templates_that_give_every_message_are_taken(tokenizer: Any, body: str) -> None:
    text = rendered(tokenizer, LOOP.replace("BODY", body))
    assert text.count("[user]") == 2
    for word in ("brief", "tide", "Water", "moon", "Why"):
        assert word in text
    assert "type" not in text, "content parts are not written out"


DROPPING = {
    "another key": (LOOP.replace("BODY", "{{ m['text'] }}"), "system"),
    "the last alone": ("{{ messages[-1].content }}", "system"),
    "no system": (
        LOOP.replace("BODY", "{% if m.role != 'system' %}{{ m.content }}{% endif %}"),
        "system",
    ),
    "no answers": (
        LOOP.replace("BODY", "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}"),
        "assistant",
    ),
    "the beginning": (LOOP.replace("BODY", "{{ m.content[:9] }}"), "system"),
    "a few words": (LOOP.replace("BODY", "{{ m.content.split()[:2] | join(' ') }}"), "system"),
    "cut": (LOOP.replace("BODY", "{{ m.content | truncate(9) }}"), "system"),
    "nothing at all": ("hello", "system"),
    "the first user only": ("{{ messages[0].content }}{{ messages[1].content }}", "assistant"),
}


@pytest.mark.parametrize(("template", "role"), DROPPING.values(), ids=DROPPING.keys())
def test_templates_that_drop_a_message_are_refused(
    tokenizer: Any, template: str, role: str
) -> None:
    words = f"got a template that drops the text of a {role} message; leave that out, or use --raw"
    with pytest.raises(InvalidInputError, match=words):
        rendered(tokenizer, template)


def test_a_short_message_is_not_taken_for_a_part_of_the_template(tokenizer: Any) -> None:
    with pytest.raises(InvalidInputError, match="drops the text of a user message"):
        rendered(tokenizer, "user 1 2 3: hi", [("user", "hi")])
    with pytest.raises(InvalidInputError, match="drops the text of a user message"):
        rendered(tokenizer, "{{ messages[0].content }}", [("user", "a"), ("user", "a")])


# ---------------------------------------------------------------- variables


def test_variables_reach_the_template(tokenizer: Any) -> None:
    template = "{% if think is false %}quick: {% endif %}{{ messages[0].content }} {{ tools }}"
    assert rendered(tokenizer, template, USER) == "what is a tide None"
    assert rendered(tokenizer, template, USER, think=False) == "quick: what is a tide None"
    assert "'name'" in rendered(tokenizer, template, USER, tools=[{"name": "f"}])


@pytest.mark.parametrize(
    "name",
    ["thinks", "messages", "add_generation_prompt", "tokenize", "helpful", "brief", "note"],
)
def test_a_variable_that_the_template_does_not_have_is_refused(tokenizer: Any, name: str) -> None:
    """Nor is a word of the template's texts and comments one."""
    template = (
        "Be helpful. {{ 'be brief' }}{# a note #}"
        "{{ messages[0].content }} {{ think }} {{ tokenize }} {{ add_generation_prompt }}"
    )
    tokenizer.chat_template = template
    with pytest.raises(InvalidInputError, match=f"got '{name}', which is none"):
        chat.render(tokenizer, [USER], {name: 1})


# ---------------------------------------------------------------- failures and budgets

FAILING = {
    "{{ messages[0]['content'] + 5 }}": "TypeError: can only concatenate",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ messages[9].content }}": "UndefinedError: ",
    "{% for m in messages": "TemplateSyntaxError: ",
    "{{ raise_exception('roles') }}": "TemplateError: roles",
    "{{ ''.__class__.__mro__ }}": "SecurityError: ",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: ",
    "{{ range(10 ** 9) }}": "OverflowError: Range too big",
    "{{ messages | map(attribute='content') | sum }}": "TypeError: ",
    "{{ 'x' * 10 ** 10 }}": "MemoryError",
}


@pytest.mark.parametrize(("template", "reason"), FAILING.items(), ids=list(FAILING))
def test_templates_that_fail_are_named(tokenizer: Any, template: str, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        rendered(tokenizer, template)
    assert f"the model's chat template must work; got {reason}" in str(caught.value)
    assert str(caught.value).endswith("; use --raw")
    assert "\n" not in str(caught.value)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one operation": "{% set x = 7 ** (7 ** 9) %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_endless_template_is_ended(tokenizer: Any, template: str) -> None:
    running, before = children(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(InvalidInputError, match="must take at most 1 s and 256 MiB for a conver"):
        rendered(tokenizer, template)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = [usage.ru_utime + usage.ru_stime for usage in (before, after)]
    assert used[1] - used[0] < 1.5
    assert children() <= running


def children() -> set[str]:
    """Numbers of the processes that this one has started and that have not been waited for."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == os.getpid():
                found.add(path.parent.name)
    return found


DOUBLED = "{% set s = namespace(x=messages[0].content) %}{% for n in range(N) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}"  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(("doublings", "words"), [(14, "characters of at most"), (60, "Memory")])
def test_a_text_that_grows_is_stopped(tokenizer: Any, doublings: int, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        rendered(tokenizer, DOUBLED.replace("N", str(doublings)), USER)
    assert len(rendered(tokenizer, DOUBLED.replace("N", "3"), USER)) == 8 * len(USER[0][1])


def test_a_template_is_tried_again_on_other_conversations_only(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    whole = chat._try

    def watched(tokenizer: Any, conversations: Any, arguments: Any) -> None:
        tried.append(len(conversations))
        whole(tokenizer, conversations, arguments)

    monkeypatch.setattr(chat, "_TRIED", set())
    monkeypatch.setattr(chat, "_try", watched)
    template = LOOP.replace("BODY", "{{ m.content }} {{ x }}")
    for messages in (USER, [("user", "what is a wave")]):
        rendered(tokenizer, template, messages)
    assert tried == [1], "one of the same roles, about as long"
    rendered(tokenizer, template, TALK)
    rendered(tokenizer, template, [("user", "x" * 999)])
    rendered(tokenizer, template, USER, x=1)
    rendered(tokenizer, template + "!", USER)
    assert tried == [1] * 5


def test_a_child_that_does_not_answer_is_given_up(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "WAIT_S", 0.2)
    monkeypatch.setattr(chat, "_text_or_error", lambda *_: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(InvalidInputError, match="got one that takes more"):
        rendered(tokenizer, "{{ messages[0].content }} slow", USER)
    assert time.monotonic() - start < 15


def test_nothing_of_the_conversation_is_changed(tokenizer: Any, tmp_path: Path) -> None:
    """Digits, quotes and texts that look like the template's own stay as they are."""
    messages = [("user", "1234 {{ 5 }} [user] '\"<>&\u2028 {% raw %}"), ("assistant", "9" * 40)]
    text = rendered(tokenizer, LOOP.replace("BODY", "{{ m.content }}"), [*messages, *messages])
    assert text == "".join(f"[{role}] {said}\n" for role, said in [*messages, *messages])
