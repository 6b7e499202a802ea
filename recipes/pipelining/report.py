"""From the runs of a pipeline to one table, one picture a measure, and the last stage's export.

Every model stands once: what the first stage started from, then each stage's model. What a stage was asked before its
training is the answer of the model that it started from. Cost: reading files; nothing is measured here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.ablating.faults import key_of
from recipes.evaluating import BASE, TRAINED
from recipes.exporting.lineage import starting_model
from recipes.pipelining.folder import link_to
from recipes.reporting.ablation_tables import markdown, thinned
from recipes.reporting.answers import read_accuracy
from recipes.reporting.figures import plot_needles, plot_perplexity
from recipes.reporting.tables import (
    NOT_MEASURED,
    VariantScores,
    format_perplexity,
    format_share,
    read_scores,
    write_scores,
    write_whole,
)

if TYPE_CHECKING:
    from recipes.pipelining.pipeline import Pipeline
    from recipes.pipelining.running import Outcome


@dataclass(frozen=True)
class ModelScores:
    """One model of a pipeline.

    Attributes:
        scores: What was measured; its name stands in the table.
        steps: Optimizer steps that made it of the one before; None of a model that nothing here trained.
        tokens: Tokens of these steps.
        seconds: Time of training them.
        val_loss: Of the stage's own validation; None where there is none.
    """

    scores: VariantScores
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    val_loss: float | None = None


def report_pipeline(pipeline: Pipeline, outcome: Outcome) -> None:
    """Write `report.md`, the numbers, the pictures, and the link `export`; each whole or not at all."""
    folder = outcome.folder
    models = [*model_scores(outcome)]
    scores = [model.scores for model in models]
    write_scores(scores, json_path=folder / "scores.json", csv_path=folder / "scores.csv")
    first = next(iter(outcome.planned.values())).config
    length = first.model.original_context_length
    series = {variant.name: variant.perplexity for variant in scores if variant.perplexity}
    plot_perplexity(series, trained_length=length, path=folder / "figures" / "perplexity.png")
    needles = {variant.name: variant.needles for variant in scores if variant.needles}
    plot_needles(needles, original_length=length, path=folder / "figures" / "needle.png")
    last = [*outcome.runs.values()][-1]
    link_to(last.export, folder / "export")
    write_whole(folder / "report.md", _text(pipeline, outcome, models))


def model_scores(outcome: Outcome) -> Iterator[ModelScores]:
    """The models of a pipeline in the order in which they came to be."""
    for name, run in outcome.runs.items():
        found = {scores.name: scores for scores in read_scores(run.path / "scores.json")}
        stage = outcome.planned[name].stage
        if stage.starts_from is None and BASE in found:
            yield ModelScores(replace(found[BASE], name=f"before {name}"))
        info = run.info()
        metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
        answers = found[TRAINED].answers or _asked_later(outcome, name)
        yield ModelScores(
            replace(found[TRAINED], name=f"after {name}", answers=answers),
            steps=info["steps"],
            tokens=run.tokens,
            seconds=info["seconds"],
            val_loss=metrics.get("val_loss"),
        )


def _asked_later(outcome: Outcome, name: str) -> dict[int, float]:
    """What the model of a stage answered when the next one asked it before training."""
    for other, run in outcome.runs.items():
        file = run.path / "answers.json"
        if outcome.planned[other].stage.starts_from == name and file.exists():
            return read_accuracy(file, name=BASE)
    return {}


def pipeline_table(models: Sequence[ModelScores]) -> str:
    """Models as rows; what made them, perplexity, needle recall and right answers, by context length, as columns."""
    variants = [model.scores for model in models]
    recalls = [variant.needles.mean_recall() if variant.needles else {} for variant in variants]
    lengths = thinned(sorted({n for variant in variants for n in variant.perplexity} | {n for r in recalls for n in r}))
    asked = thinned(sorted({length for variant in variants for length in variant.answers}))
    header = ["model", "steps", "tokens", "minutes", "val loss"]
    header += [*(f"ppl {n}" for n in lengths), *(f"needle {n}" for n in lengths), *(f"answers {n}" for n in asked)]
    rows = [
        [
            model.scores.name,
            _said(model.steps, ","),
            _said(model.tokens, ","),
            _said(None if model.seconds is None else model.seconds / 60, ".1f"),
            _said(model.val_loss, ".3f"),
            *(format_perplexity(model.scores.perplexity.get(n)) for n in lengths),
            *(format_share(recall.get(n)) for n in lengths),
            *(format_share(model.scores.answers.get(n)) for n in asked),
        ]
        for model, recall in zip(models, recalls, strict=True)
    ]
    return markdown(header, rows, names=1)


def _said(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _text(pipeline: Pipeline, outcome: Outcome, models: Sequence[ModelScores]) -> str:
    parts = [f"# pipeline={pipeline.name}", "", f"{pipeline.paper}.", ""]
    if pipeline.words:
        parts += [f"With {', '.join(f'`{word}`' for word in pipeline.words)}.", ""]
    parts += [pipeline_table(models).rstrip(), ""]
    parts += ["Perplexity (ppl) of the same tail tokens, needle recall and right answers, by context length."]
    parts += ["Steps, tokens, minutes and val loss (of a stage's own validation) are those of the stage alone.", ""]
    parts += [*(f"{line}\n" for line in differing_measures(outcome))]
    parts += ["![perplexity](figures/perplexity.png)", "", "![needle recall](figures/needle.png)", ""]
    for number, (name, run) in enumerate(outcome.runs.items(), 1):
        parts += [*_stage_lines(number, name, run.path, outcome)]
    return "\n".join(parts).rstrip() + "\n"


def _stage_lines(number: int, name: str, run: Path, outcome: Outcome) -> list[str]:
    plan = outcome.planned[name]
    about, before, after = plan.config.about, plan.config.model.original_context_length, plan.config.context_length
    context = f"{before:,} -> {after:,}" if before != after else f"{after:,}"
    starts = f"the export of {plan.stage.starts_from}" if plan.stage.starts_from else starting_model(plan.config)
    # With the folder, the command would leave a second run beside the first, and the pipeline go on from that.
    by_hand = [word for word in outcome.words[name] if key_of(word) != "run_folder"]
    lines = [
        f"## {number}. {name}",
        "",
        f"- recipe: `{plan.stage.recipe}` ({about.paper}), from {starts}",
        f"- context: {context} tokens",
        f"- hardware: {outcome.runs[name].info().get('hardware', 'unknown')}",
    ]
    if about.get("reported"):
        lines.append(f"- reported by the paper: {about.reported}")
    lines += [
        f"- run: `{run}`, with its log, ledger of data, pictures and checkpoints",
        "- by hand:",
        "",
        f"      python -m recipes.run {shlex.join(by_hand)}",
        "",
    ]
    return lines


def differing_measures(outcome: Outcome) -> Iterator[str]:
    """A sentence where stages were measured on different text or windows, as their numbers then do not compare."""
    by_measure: dict[str, list[str]] = {}
    for name, run in outcome.runs.items():
        measure: Mapping[str, Any] = run.info()["measured"]["evaluation"]
        facts = {key: measure[key] for key in ("corpus", "perplexity", "seed") if key in measure}
        by_measure.setdefault(json.dumps(facts, sort_keys=True), []).append(name)
    if len(by_measure) > 1:
        groups = " | ".join(", ".join(names) for names in by_measure.values())
        yield (
            f"Stages were measured on different held-out text or windows ({groups}): their perplexities do not compare;"
            " evaluation.… words for all stages make them the same."
        )
