"""Ask a model about a long file: it reads the file once, answers while you watch, and reads again what changes."""

from __future__ import annotations

import sys

from recipes.chatting.words import parse_words
from recipes.cli import exit_status

USAGE = """usage: python -m recipes.chat model=<folder or hub name> file=<long text> [key=value …]

{doc}

  model=<folder>                a Hugging Face folder or hub name, a LoRA adapter's folder, a run that was exported or
                                its `latest`; model=latest is the newest exported run under outputs/, model=demo the
                                model that comes with this repository
  file=<long text>              plain text in UTF-8 of any name; also .jsonl and .parquet with a field `text`, and .gz
                                and .zst of these
  prompt=<question>             print one answer and leave; without it, ask line by line: Ctrl-C stops an answer, Ctrl-D
                                leaves

  chat_template=auto            the one that the run was fine-tuned with, else the tokenizer's own, else none; or
                                tokenizer, none, or another name of conf/chat_template. Without a template a base model
                                goes on with the text: a prompt that ends in ? is put as Question and Answer, any other
                                one is the beginning of a line that it completes
  context_length=<tokens>       read at most so many tokens of text, question and answer; else what the model reads.
                                What is too long is cut out of the middle of the text, and said
  max_new_tokens=256            longest answer; room for it is kept free
  temperature=0                 0 takes the most likely token each time; above it, draw
  top_p=1  repetition_penalty=1  seed=0
  dtype=auto                    bf16 on a GPU and fp32 on a CPU; or bf16, fp32
  device=auto                   a GPU if there is one; or cpu, cuda, cuda:1

Answers go to standard output, all else to standard error: tokens of the prompt and how many of them were read before,
time to the first token, tokens a second. Exit status 2: a mistake in the words or the file, said in one sentence; 130:
interrupted."""


def chat(words: list[str]) -> None:
    """Open the model and the file, and answer.

    Raises:
        SystemExit: With status 130, if the one answer was interrupted.
        ValueError: A word or a file is wrong.
    """
    asked = parse_words(words)  # before an import of seconds
    from recipes.chatting.text_file import TextFile

    file = TextFile(asked.file)
    file.read()
    from recipes.chatting.terminal import converse

    try:
        converse(asked, file)
    except KeyboardInterrupt as interruption:
        raise SystemExit(130) from interruption


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE.format(doc=(__doc__ or "").strip()))
    else:
        sys.exit(exit_status(lambda: chat(sys.argv[1:])))
