"""Chat templates: programs that come with a model, so that they are tried within a budget."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import signal
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment

from ...errors import InvalidInputError, excerpt

#: role and text
Message = tuple[str, str]
#: most seconds of processor time for a conversation, most bytes for all, and most characters that
#: a template may add to the texts of a conversation, beside once more their own number
CPU_S, MEMORY, ADDED_CHARS = 1.0, 1 << 28, 200_000
#: seconds after which a trial is given up that does not end by itself
WAIT_S = 20
#: digits that stand for a message when a template is tried
DIGITS = 16
#: arguments of Transformers' function that are variables of a template
SHARED_NAMES = ("tools", "documents")
WORD, OTHER = re.compile(r"\S+"), re.compile(r"[^0-9]+")
#: a content part written out, by a template that does not expect any
PART = re.compile(r"""['"]type['"]: ?['"]text""")


#: templates and arguments with the shapes of conversations on which they were tried
_TRIED: set[tuple[str, str, tuple[str, ...], int]] = set()


def render(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], arguments: Mapping[str, Any]
) -> list[str]:
    """The text of each conversation in the tokenizer's chat template, up to the model's answer.

    A template that has not been tried on such conversations is tried in a process of its own, with
    limits on time and memory. Every conversation is rendered twice. The first time digits stand for
    the messages, which must all be in the text, so that no message is dropped. If they are not,
    messages are given as lists of content parts, which templates of multimodal models expect.

    Args:
        tokenizer: of Transformers, with a chat template.
        conversations: messages in order; roles "system", "user" and "assistant".
        arguments: further variables of the template.

    Raises:
        InvalidInputError: the template fails, drops a message, exceeds its budget, or does not use
            one of the arguments.
    """
    setting = str(tokenizer.chat_template), json.dumps(arguments, sort_keys=True)
    shapes = {
        (
            *setting,
            tuple(role for role, _ in messages),
            sum(len(text) for _, text in messages).bit_length(),
        )
        for messages in conversations
    }
    if not shapes <= _TRIED:
        _try(tokenizer, conversations, arguments)
        _TRIED.update(shapes)
    found = []
    for messages in conversations:
        text, error = _text_or_error(tokenizer, messages, arguments)
        if error:
            raise InvalidInputError(error)
        found.append(text)
    return found


def _try(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], arguments: Mapping[str, Any]
) -> None:
    """Render in a child, which has a budget; raise what goes wrong there."""
    receiver, sender = Pipe(duplex=False)
    with warnings.catch_warnings():
        # other threads may hold locks, none of which the child takes: it runs nothing but Jinja
        warnings.simplefilter("ignore", DeprecationWarning)
        # the child ends by its parent or its timer; an interrupt must not lead it out of here
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        child = os.fork()
    if child == 0:
        receiver.close()
        _serve(sender, tokenizer, conversations, arguments)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sender.close()
        for _ in conversations:
            error = _received(receiver)
            if error:
                raise InvalidInputError(error)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # where ended children are not kept
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        receiver.close()


def _received(receiver: Connection) -> str:
    with suppress(EOFError):
        if receiver.poll(WAIT_S):
            return receiver.recv_bytes().decode()
    return (
        f"the model's chat template must take at most {CPU_S:g} s and {MEMORY >> 20} MiB for a "
        "conversation; got one that takes more; use --raw"
    )


def _serve(
    sender: Connection,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    arguments: Mapping[str, Any],
) -> NoReturn:
    """Send what is wrong with each conversation, or nothing; then end, whatever happens.

    A timer of processor time ends this process also within a single operation, and after its
    parent.
    """
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _limit_memory()
        for messages in conversations:
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            _, error = _text_or_error(tokenizer, messages, arguments)
            sender.send_bytes(error.encode())
    finally:
        os._exit(0)


def _text_or_error(
    tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any]
) -> tuple[str, str]:
    """A conversation's text, or the message of what is wrong with it."""
    try:
        return _text(tokenizer, messages, arguments), ""
    except InvalidInputError as error:
        return "", str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {excerpt(error)}".rstrip(": ")
        return "", f"the model's chat template must work; got {reason}; use --raw"


def _limit_memory() -> None:
    """Let this process have no more than `MEMORY` beyond what it has now, where that is known."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _text(tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """One conversation's text; raises whatever the template does."""
    _check_names(tokenizer, arguments)
    marks = [_mark(text, number) for number, (_, text) in enumerate(messages, start=1)]
    probe = [(role, mark) for (role, _), mark in zip(messages, marks, strict=True)]
    first: Exception | None = None
    for in_parts in (False, True):
        try:
            seen = _rendered(tokenizer, probe, in_parts, arguments)
            digits = "" if PART.search(seen) else _digits(seen)
            dropped = [role for role, mark in probe if _digits(mark) not in digits]
            if not dropped:
                return _rendered(tokenizer, messages, in_parts, arguments)
            raise InvalidInputError(
                "the model's chat template must give the model every message; got a template that "
                f"drops the text of a {dropped[0]} message; leave that out, or use --raw"
            )
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _rendered(
    tokenizer: Any, messages: Sequence[Message], in_parts: bool, arguments: Mapping[str, Any]
) -> str:
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in messages
    ]
    text: str = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, **arguments
    )
    most = 2 * sum(len(text) for _, text in messages) + ADDED_CHARS
    if len(text) > most:
        raise InvalidInputError(
            "the model's chat template must give a text not much longer than the messages; got "
            f"{len(text)} characters of at most {most}; use --raw"
        )
    return text


def _check_names(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    lexed = Environment(autoescape=True).lex(tokenizer.get_chat_template())
    words = {word for _, kind, word in lexed if kind == "name"}
    own = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for name in arguments:
        if name in own.difference(SHARED_NAMES) or name not in words:
            raise InvalidInputError(
                "--template-arg must name a variable of the model's chat template; got "
                f"{name!r}, which is none; correct it or leave it out"
            )


def _mark(text: str, number: int) -> str:
    """Digits in place of a message: as many words, of the same lengths, and a word of its own."""
    word = str(number * 1_234_567_890_123_457 % 10**DIGITS).zfill(DIGITS)

    def digits(match: re.Match[str]) -> str:
        length = len(match[0])
        return (word * (length // DIGITS + 1))[:length]

    return f"{WORD.sub(digits, text)} {word}"


def _digits(text: str) -> str:
    return OTHER.sub("", text)
