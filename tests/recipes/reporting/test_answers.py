import json

import pytest

from recipes.reporting import answers
from recipes.reporting.answers import (
    Shown,
    VariantAnswers,
    answers_table,
    answers_text,
    plot_answers,
    write_answers,
)

SHOWN = [
    Shown("key_values", 4090, 0.25, "What completes this line?\nThe pair is sun", "The pair is sun ship."),
    Shown("table_global", 500, None, "Question: " + "why " * 80, "7"),
]
VARIANTS = [
    VariantAnswers("base as it is", {"key_values": {512: 0.0, 4096: 0.05}, "drills": {512: 0.5}}, ["", "no\n\nidea"]),
    VariantAnswers(
        "after training", {"key_values": {512: 1.0, 4096: 0.8}, "drills": {512: 0.75}}, ["The pair is sun ship.", "7"]
    ),
]


def test_the_table_has_a_row_for_each_task_and_model_and_reads_as_plain_text():
    lines = answers_table(VARIANTS).splitlines()
    assert lines[0].split() == ["|", "task", "and", "model", "|", "512", "|", "4096", "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["key_values, base as it is", "0.00", "0.05"],
        ["key_values, after training", "1.00", "0.80"],
        ["drills, base as it is", "0.50", "-"],
        ["drills, after training", "0.75", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_questions_are_shown_with_the_right_answer_and_that_of_each_model():
    first, second = answers_text(SHOWN, VARIANTS).split("table_global")
    assert "key_values, 4090 tokens, fact at 25% of the text: What completes this line? The pair is sun" in first
    assert [line.split("  ")[-1].strip() for line in first.splitlines()[1:]] == [
        "The pair is sun ship.",
        "(nothing)",
        "The pair is sun ship.",
    ]
    assert second.startswith(", 500 tokens: Question: why")
    assert max(map(len, second.splitlines())) < 200
    assert "no idea" in second


def test_json_holds_all_of_it(tmp_path):
    write_answers(SHOWN, VARIANTS, tmp_path / "answers.json")
    record = json.loads((tmp_path / "answers.json").read_text())
    assert [Shown(**question) for question in record["questions"]] == SHOWN
    (before, after) = record["variants"]
    assert after["accuracy"]["key_values"] == {"512": 1.0, "4096": 0.8}
    assert before["answers"] == ["", "no\n\nidea"]


def test_the_picture_has_a_panel_for_each_task_with_a_line_for_each_model(tmp_path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    save = answers.save
    monkeypatch.setattr(answers, "save", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    guessing = VariantAnswers("guessing", {"key_values": {512: 0.25}})
    path = plot_answers([guessing, *VARIANTS], trained_length=512, path=tmp_path / "answers.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["key_values", "drills"]
    for axes, task in zip(panels, ("key_values", "drills"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for variant in VARIANTS:
            x, y = lines[variant.name].get_data()
            assert dict(zip(x, y, strict=True)) == variant.accuracy[task]
        assert lines["guessing"].get_linestyle() == ":"
        assert list(lines["guessing"].get_ydata()) == ([0.25] if task == "key_values" else [])
        (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert list(dashed.get_xdata()) == [512, 512]
