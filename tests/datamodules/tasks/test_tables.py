import doctest
import inspect
import re
from collections import Counter

import numpy as np
import pytest

from datamodules.tasks import table_formats, table_questions
from datamodules.tasks.table_columns import Column, Table, draw_schema, draw_table
from datamodules.tasks.table_formats import FORMATS, render
from datamodules.tasks.table_questions import FAMILIES, Question
from datamodules.tasks.tables import MIN_CHARACTERS, SLACK_CHARACTERS, TableProblem, make_problem
from tests.datamodules.tasks.table_solver import QUESTION_KINDS, parse, solve

EXAMPLE = Table(
    (
        Column("id", "key", ["K1", "K2", "K3"]),
        Column("price", "number", [30, 7, 30]),
        Column("status", "label", ["open", "closed", "open"]),
    )
)
FAMILY_OF = {
    **dict.fromkeys(("cell", "cells", "matching"), "retrieval"),
    **dict.fromkeys(("compare", "total", "difference"), "chain_of_thought"),
    **dict.fromkeys(("count", "extreme", "grand_total", "most_frequent", "top"), "global"),
}


@pytest.fixture(scope="module")
def problems() -> list[TableProblem]:
    """Of all sizes; the smallest have the most equal values and whole tables in an answer."""
    sizes = [MIN_CHARACTERS, 1_000, 2_000, 8_000]
    return [make_problem((5, k), num_characters=sizes[k % 4]) for k in range(800)]


def test_drawn_tables_are_what_the_code_renders():
    (example,) = doctest.DocTestFinder().find(render, "render", globs={"render": render, "table": EXAMPLE})
    results = doctest.DocTestRunner().run(example)
    assert results.attempted == len(FORMATS)
    assert results.failed == 0


@pytest.mark.parametrize(
    "asked",
    [
        lambda q, price, status: (q.cell, q.cell(EXAMPLE, price, 1)),
        lambda q, price, status: (q.cells, q.cells(EXAMPLE, status, [2, 1])),
        lambda q, price, status: (q.matching, q.matching(EXAMPLE, [price, status], 2)),
        lambda q, price, status: (q.compare, q.compare(EXAMPLE, price, [1, 0, 2], highest=True)),
        lambda q, price, status: (q.total, q.total(EXAMPLE, price, [1, 2])),
        lambda q, price, status: (q.difference, q.difference(EXAMPLE, price, [1, 2])),
        lambda q, price, status: (q.count, q.count(EXAMPLE, status, "open")),
        lambda q, price, status: (q.extreme, q.extreme(EXAMPLE, price, highest=False)),
        lambda q, price, status: (q.grand_total, q.grand_total(EXAMPLE, price)),
        lambda q, price, status: (q.most_frequent, q.most_frequent(EXAMPLE, status)),
        lambda q, price, status: (q.top, q.top(EXAMPLE, price, 2, highest=False)),
    ],
)
def test_every_question_in_a_docstring_is_asked_and_answered_so(asked, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_questions, "MAX_LISTED_ROWS", 1)  # so that the example needs its second condition
    function, question = asked(table_questions, *EXAMPLE.columns[1:])
    assert isinstance(question, Question)
    documented = inspect.getdoc(function)
    assert documented is not None
    assert documented.splitlines()[-2:] == [question.text, question.answer]
    module = inspect.getdoc(table_questions)
    assert module is not None
    assert render(EXAMPLE, "csv").text in inspect.cleandoc(module.replace("\n    ", "\n"))


def test_every_answer_is_what_a_reader_of_the_text_alone_finds(problems: list[TableProblem]):
    kinds = Counter()
    for problem in problems:
        solved = solve(problem.prompt)
        assert solved.answer == problem.answer, problem.text
        assert FAMILY_OF[solved.kind] == problem.family
        kinds[solved.kind, problem.format, parse(problem.prompt).question_first] += 1
    assert {kind for kind, _, _ in kinds} == set(QUESTION_KINDS)
    assert len(kinds) == len(QUESTION_KINDS) * len(FORMATS) * 2, "a combination was never drawn"


def test_answers_of_a_long_table_are_what_a_reader_finds():
    for k in range(12):
        problem = make_problem((6, k), num_characters=200_000)
        assert solve(problem.prompt).answer == problem.answer
        assert problem.num_rows > 900


def test_families_formats_and_orders_are_drawn_evenly(problems: list[TableProblem]):
    parsed = [parse(problem.prompt) for problem in problems]
    assert [found.format for found in parsed] == [problem.format for problem in problems]
    for drawn, among in (
        ([problem.family for problem in problems], FAMILIES),
        ([problem.format for problem in problems], FORMATS),
        ([found.question_first for found in parsed], (True, False)),
    ):
        counts = Counter(drawn)
        assert set(counts) == set(among)
        assert min(counts.values()) > 0.8 * len(problems) / len(among)


def test_only_what_was_asked_for_is_drawn():
    for k in range(40):
        problem = make_problem((k,), num_characters=1500, formats=["csv"], families=["global", "retrieval"])
        assert parse(problem.prompt).format == problem.format == "csv"
        assert FAMILY_OF[solve(problem.prompt).kind] in ("global", "retrieval")


def test_keys_differ_and_columns_have_their_types(problems: list[TableProblem]):
    num_columns = Counter()
    for problem in problems:
        parsed = parse(problem.prompt)
        keys = [row[parsed.header[0]] for row in parsed.rows]
        assert len(set(keys)) == len(keys) == problem.num_rows >= 2
        assert all(re.fullmatch(r"[A-Z]\d{5}", key) for key in keys)
        assert len(set(parsed.header)) == len(parsed.header)
        numbers = [name for name in parsed.header if all(row[name].isdigit() for row in parsed.rows)]
        assert numbers, "no column of numbers"
        num_columns[len(parsed.header)] += 1
    assert set(num_columns) == {4, 5, 6, 7, 8}


def test_keys_of_a_very_long_column_still_differ():
    table = draw_table([("id", "key")], 300_000, np.random.default_rng(0))
    assert len(set(table.keys)) == 300_000
    assert {len(str(key)) for key in table.keys} == {8}


def test_schema_has_a_number_a_label_and_no_column_twice():
    for k in range(300):
        schema = draw_schema(np.random.default_rng(k), max_columns=8)
        names, kinds = zip(*schema, strict=True)
        assert len(set(names)) == len(names)
        assert kinds[0] == "key"
        assert "key" not in kinds[1:]
        assert {"number", "label"} <= set(kinds)


def test_evidence_is_anywhere_in_the_table_with_the_same_probability():
    """Depths of the rows that questions name, found in the text; 10 bins, chi-square below its 0.1 percent point."""
    depths = {"retrieval": [], "chain_of_thought": []}
    for k in range(2_000):
        problem = make_problem((9, k), num_characters=3_000, formats=["csv"], families=[FAMILIES[k % 2]])
        parsed = parse(problem.prompt)
        order = [row[parsed.header[0]] for row in parsed.rows]
        named = [order.index(key) for key in solve(problem.prompt).keys]
        assert tuple(named) == problem.evidence_rows
        # One row a problem: those of one problem differ from one another, so they are not independent.
        depths[problem.family].append((named[k % len(named)] + 0.5) / problem.num_rows)
    for family, found in depths.items():
        counts, _ = np.histogram(found, 10, (0, 1))
        expected = len(found) / 10
        assert ((counts - expected) ** 2 / expected).sum() < 27.9, f"{family}: {counts}"


def test_a_global_question_rests_on_all_rows(problems: list[TableProblem]):
    found = [problem for problem in problems if problem.family == "global"]
    assert all(problem.evidence_rows == tuple(range(problem.num_rows)) for problem in found)
    assert len(found) > 200


def test_chain_of_thought_shows_2_to_5_cells_before_the_result(problems: list[TableProblem]):
    numbers = Counter()
    for problem in problems:
        if problem.family == "chain_of_thought":
            shown, _ = problem.answer.split(". ", 1)
            assert len(shown.split(", ")) == len(problem.evidence_rows)
            numbers[len(problem.evidence_rows)] += 1
    assert set(numbers) == {2, 3, 4, 5}


@pytest.mark.parametrize("num_characters", [MIN_CHARACTERS, 1_500, 5_000, 60_000])
def test_text_is_never_longer_than_asked_and_hardly_shorter(num_characters: int):
    lengths = [
        len(make_problem((k,), num_characters=num_characters).text) for k in range(400 if num_characters < 1e4 else 40)
    ]
    assert max(lengths) <= num_characters
    assert min(lengths) >= num_characters - SLACK_CHARACTERS


def test_a_problem_depends_on_its_seed_and_size_alone():
    first = make_problem((3, 4), num_characters=2_000)
    make_problem((1,), num_characters=5_000)
    np.random.default_rng(3).random()
    assert make_problem((3, 4), num_characters=2_000) == first
    assert first.seed == (3, 4)
    texts = {make_problem(seed, num_characters=2_000).text for seed in [(3, 4), (4, 3), (3,), (3, 4, 5), (3, 5)]}
    assert len(texts) == 5


def test_size_changes_neither_columns_nor_format_nor_family():
    for k in range(30):
        small, large = (make_problem((k,), num_characters=size) for size in (2_000, 20_000))
        assert parse(small.prompt).header == parse(large.prompt).header
        assert (small.format, small.family) == (large.format, large.family)
        assert large.num_rows > 5 * small.num_rows


def test_no_cell_needs_quotes_or_escapes(problems: list[TableProblem]):
    assert table_formats.__doc__ is not None
    assert "letters, digits, spaces and hyphens" in table_formats.__doc__
    for problem in problems[::10]:
        for row in parse(problem.prompt).rows:
            assert all(re.fullmatch(r"[A-Za-z0-9 -]+", cell) for cell in row.values())
