"""The conversation as a person has it: questions line by line, answers as they come, numbers behind each."""

from __future__ import annotations

import sys
from contextlib import suppress

from transformers.utils import logging

from lightning_modules.evaluation.generation import Decoding, Generation
from recipes.chatting.opening import Opened, open_model
from recipes.chatting.session import Asked, Session
from recipes.chatting.templates import prompt_form
from recipes.chatting.text_file import TextFile
from recipes.chatting.words import ChatWords

ASK = "> "


def converse(words: ChatWords, file: TextFile) -> None:
    """Open the model and answer what is asked.

    Raises:
        KeyboardInterrupt: Ctrl-C, while the model was opened or the one answer made.
        ValueError: The model cannot be opened, or the one question cannot be asked.
    """
    logging.disable_progress_bar()  # a bar for each of hundreds of tensors says nothing to a user
    logging.set_verbosity_error()
    opened = open_model(words)
    form = prompt_form(words.chat_template, opened.tokenizer, run=opened.place.run)
    decoding = Decoding(
        max_new_tokens=words.max_new_tokens,
        temperature=words.temperature,
        top_p=words.top_p,
        repetition_penalty=words.repetition_penalty,
        seed=words.seed,
    )
    session = Session(opened, form, file, decoding=decoding, say=say, several=words.prompt is None)
    say(opening_line(opened, form.name))
    for notice in opened.notices:
        say(notice)
    if words.prompt is None:
        converse_by_line(session)
    elif answer(session, words.prompt).interrupted:
        raise KeyboardInterrupt


def converse_by_line(session: Session) -> None:
    """Questions from standard input until its end; Ctrl-C stops an answer, or forgets a line that was begun."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys in input()
    say(f"ask about {session.file.path}; Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            question = read_line().strip()
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if not question:
            continue
        try:
            answer(session, question)
        except ValueError as error:
            say(str(error))
        except KeyboardInterrupt:  # before the model began
            say("stopped")


def read_line() -> str:
    """One line of standard input; on a terminal it is asked for, with the line that can be edited."""
    if sys.stdin.isatty():
        return input(ASK)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def answer(session: Session, question: str) -> Asked:
    """Ask, print the answer as it comes, and the numbers behind it."""
    shown, blanks = False, ""

    def show(piece: str) -> None:  # blanks wait for what comes behind them, so that none stand at either end
        nonlocal shown, blanks
        piece = blanks + piece if shown else piece.lstrip()
        blanks = piece[len(piece.rstrip()) :]
        shown = shown or bool(piece)
        print(piece.rstrip(), end="", flush=True)

    asked = session.ask(question, show)
    if shown or not asked.interrupted:
        print(flush=True)
    if not (shown or asked.interrupted):
        say("the model ended its answer before it said anything")
    say(numbers(asked.generation))
    return asked


def numbers(generation: Generation) -> str:
    """Tokens and times of an answer."""
    read = f"prompt of {generation.num_prompt_tokens} tokens"
    if generation.num_reused_tokens:
        read += f" ({generation.num_reused_tokens} of them read before)"
    made = len(generation.token_ids)
    if not made:
        return f"{read}; stopped before the first token of the answer"
    line = f"{read}, first token after {generation.first_token_seconds:.2f} s; answer of {made} tokens"
    if generation.tokens_per_second:
        line += f" at {generation.tokens_per_second:.1f} tokens/s"
    ended = {"max_new_tokens": ", stopped by max_new_tokens", "interruption": ", stopped by Ctrl-C"}
    return line + ended.get(generation.stopped_by, "")


def opening_line(opened: Opened, form: str) -> str:
    """Which model answers, and how it is asked."""
    asked = "as a base model that goes on with the text" if form == "none" else f"with chat_template={form}"
    return (
        f"model {opened.place.name}: {opened.model.num_parameters() / 1e6:.1f} M parameters in {opened.dtype} on"
        f" {opened.model.device}, reads {opened.context_length} tokens; asked {asked}"
    )


def say(sentence: str) -> None:
    """To the user, apart from the answers."""
    print(f"[{sentence}]", file=sys.stderr, flush=True)
