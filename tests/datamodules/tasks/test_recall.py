import pickle
import re
from collections import Counter

import numpy as np
import pytest

from datamodules.tasks.recall import RecallDocuments, RecallFormat, load_words

STATED = re.compile(r"\nThe pair is (\w+) (\w+)\.")


def make_haystack(num_words: int, seed: int) -> str:
    """Numbered words between irregular whitespace, so that any stretch is found at one place only."""
    gaps = np.random.default_rng(seed).choice([" ", "\n", "  ", "\n\n"], num_words)
    return "".join(f"w{seed}x{i}{gap}" for i, gap in enumerate(gaps))


HAYSTACK = [make_haystack(900, 0), make_haystack(40, 1), make_haystack(600, 2)]


def make_documents(**changes) -> RecallDocuments:
    options = {"haystack": HAYSTACK, "num_documents": 50, "min_words": 24, "max_words": 500, "seed": 7} | changes
    return RecallDocuments(**options)


def test_default_statement_is_question_answer_and_full_stop():
    wording = RecallFormat()
    assert wording.statement == wording.question + wording.answer + "."
    assert wording.words_per_statement == 5


def test_words_are_128_different_lower_case_words():
    words = load_words()
    assert len(words) == len(set(words)) == 128
    assert all(re.fullmatch("[a-z]{3,8}", word) for word in words)
    assert not {"the", "and", "that", "not", "for"} & set(words)


def test_every_statement_is_asked_once_at_the_end_in_another_order():
    reordered = 0
    for document in make_documents():
        facts = STATED.findall(document)
        half = len(facts) // 2
        stated, asked = facts[:half], facts[half:]
        assert Counter(stated) == Counter(asked)
        assert len(dict(stated)) == half, "a key was stated twice"
        reordered += stated != asked
        tail = "".join(f"\nThe pair is {key} {value}." for key, value in asked)
        assert document.endswith(tail)
    assert reordered > 25


def test_without_statements_a_document_is_a_verbatim_slice_of_the_haystack():
    sources = Counter()
    for document in make_documents():
        filler = STATED.sub("", document)
        found = [place for place, text in enumerate(HAYSTACK) if filler in text]
        assert found
        sources[found[0]] += bool(filler)
    assert sources[0] > 5
    assert sources[2] > 5


def test_statements_stand_at_word_edges_all_over_the_filler():
    depths = []
    for document in make_documents(max_density=0.2, min_words=200):
        body = document[: document.rindex("w0x") if "w0x" in document else document.rindex("w2x")]
        depths += [match.start() / len(body) for match in STATED.finditer(body)]
        # A word cut in two would leave an edge that no haystack word has.
        words = STATED.sub("", document).split()
        assert all(re.fullmatch(r"w\dx\d+", word) for word in words)
    assert len(depths) > 100
    assert np.histogram(depths, 4, (0, 1))[0].min() > 0.15 * len(depths)


def test_a_document_has_exactly_the_words_that_were_drawn_wherever_its_stretch_begins():
    texts = [make_haystack(50, seed) for seed in range(3)]
    edges = set()
    for document in make_documents(haystack=texts, min_words=50, max_words=50, num_documents=400):
        filler = STATED.sub("", document).split()
        assert len(filler) + 5 * len(STATED.findall(document)) == 50
        edges |= {*filler[:1], *filler[-1:]}
    assert {f"w{seed}x{word}" for seed in range(3) for word in (0, 49)} <= edges, "an end of a text is never reached"


def test_lengths_and_densities_span_their_ranges():
    documents = make_documents(num_documents=300)
    lengths = np.array([len(document.split()) for document in documents])
    assert lengths.min() >= 24 - 5
    assert lengths.max() <= 500 + 5
    assert np.median(lengths) == pytest.approx(np.sqrt(24 * 500), rel=0.2), "not log-uniform"
    stated = np.array([5 * len(STATED.findall(document)) for document in documents]) / lengths
    assert stated.max() > 0.9
    assert np.median(stated[lengths > 200]) == pytest.approx(np.sqrt(0.1), rel=0.25)


def test_a_document_depends_on_seed_and_index_alone():
    documents = make_documents()
    forwards = [documents[i] for i in range(len(documents))]
    worker = pickle.loads(pickle.dumps(documents))
    assert [worker[i] for i in reversed(range(50))] == forwards[::-1]
    assert make_documents(num_documents=9)[3] == forwards[3]
    assert make_documents(seed=8)[3] != forwards[3]
    assert len(set(forwards)) == 50


def test_facts_never_outnumber_the_words():
    haystack = [make_haystack(9000, 0)]
    document = make_documents(haystack=haystack, min_words=9000, max_words=9000, min_density=1.0)[0]
    assert len(STATED.findall(document)) == 2 * 128


def test_an_echoed_share_of_documents_is_a_word_list_said_twice():
    made = make_documents(num_documents=400, echoed=0.25)
    documents = [made[i] for i in range(400)]
    echoes = [document for document in documents if not STATED.search(document)]
    assert 0.18 < len(echoes) / 400 < 0.32
    for document in echoes:
        empty, first, second = document.split("\n")
        assert empty == ""
        assert first == second
        assert set(first.split()) <= set(load_words())


def test_fingerprint_tells_every_parameter():
    changes = [
        {},
        {"num_documents": 51},
        {"min_words": 25},
        {"max_words": 499},
        {"min_density": 0.2},
        {"max_density": 0.9},
        {"echoed": 0.5},
        {"seed": 8},
        {"haystack": [*HAYSTACK, "one more"]},
        {"haystack": [HAYSTACK[0], HAYSTACK[1] + HAYSTACK[2]]},
        {"format": RecallFormat(statement="\nThe key of {key} is {value}.")},
    ]
    fingerprints = {make_documents(**change).fingerprint() for change in changes}
    assert len(fingerprints) == len(changes)
    assert make_documents().fingerprint() in fingerprints


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"min_words": 9}, "min_words=9"),
        ({"min_words": 501}, "min_words=501"),
        ({"min_density": 0.0}, "min_density=0"),
        ({"max_density": 1.5}, "max_density=1.5"),
        ({"echoed": 1.5}, "echoed=1.5"),
        ({"num_documents": 0}, "num_documents=0"),
    ],
)
def test_impossible_parameters_name_the_key(change, told):
    with pytest.raises(ValueError, match=told):
        make_documents(**change)


def test_too_short_a_haystack_is_told_at_the_first_document():
    with pytest.raises(ValueError, match="max_words=901, but the longest haystack text has 900 words"):
        make_documents(max_words=901)[0]
    with pytest.raises(ValueError, match="longest haystack text has 0 words"):
        make_documents(haystack=[])[0]


def test_index_beyond_the_end_is_an_index_error():
    with pytest.raises(IndexError):
        make_documents()[50]
