"""`python -m recipes.show numbers`: the numbers of the papers beside those of the presets, as Markdown.

The README holds what this prints for the four papers; a test compares the two.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence

from recipes.cli import exit_status
from recipes.compose import ConfigError, presets
from recipes.provenance.reading import Stated, preset_file, stated_numbers
from recipes.provenance.wording import as_written, counted, papers_number, reason
from recipes.quick_compose import preset_values
from recipes.showing.stages import in_order, stages

PAPERS = ("together_llama2_7b_32k", "index_1p9b_32k", "utk_*", "longskywork_13b_200k")
COPIED = "utk_qwen2_7b_128k"
"""The folder of which UtK's other models are copies; of those only what differs is printed."""
BEGINNING, END = "<!-- python -m recipes.show numbers -->", "<!-- end -->"
"""What stands around these tables in the README."""
USAGE = """usage: python -m recipes.show numbers [recipe=<name or folder>]

Every number of the four papers, as the paper has it, as the preset has it, and where it comes from; Markdown, one table
for each preset. With recipe=<name or folder> only those, of whatever paper."""


def main(words: Sequence[str]) -> int:
    """Print the tables; returns the exit status."""
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    return exit_status(lambda: print(markdown(words)))


def markdown(words: Sequence[str] = ()) -> str:
    """The tables of the four papers, or of the presets that are asked for.

    Args:
        words: At most one, `recipe=<name or folder>`.

    Raises:
        ConfigError: Another word, or no such preset.
    """
    asked = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(asked) != len(words) or len(asked) > 1:
        raise ConfigError(f"'{' '.join(words)}' is not understood; numbers takes at most recipe=<name or folder>")
    known = _in_order(presets())
    papers = [_of_paper(pattern, known) for pattern in ([glob.escape(name) for name in asked] or PAPERS)]
    if asked and not papers[0]:
        folders = sorted({preset.rpartition("/")[0] for preset in known})
        raise ConfigError(f"recipe={asked[0]} does not exist; there are the folders {', '.join(filter(None, folders))}")
    return "\n\n".join(_section(paper, all_of_it=bool(asked)) for paper in papers if paper)


def _in_order(names: Sequence[str]) -> list[str]:
    return in_order(stages({name: preset_values(name).config.about.get("continues") for name in names}))


def _of_paper(pattern: str, known: Sequence[str]) -> list[str]:
    """Presets of a folder or of that name; copies come after what they copy."""
    found = [preset for preset in known if fnmatch.fnmatch(preset, f"{pattern}/*") or preset == pattern]
    return sorted(found, key=lambda preset: _copied(preset, found) is not None)


def _copied(preset: str, among: Sequence[str]) -> str | None:
    """The preset that this one repeats for another model."""
    folder, _, stage = preset.rpartition("/")
    original = f"{COPIED}/{stage}"
    return original if folder != COPIED and original in among else None


def _section(paper: Sequence[str], *, all_of_it: bool) -> str:
    """One paper, folded up."""
    numbers = {preset: [number for number in stated_numbers(preset_file(preset)) if number.kind] for preset in paper}
    title = preset_values(paper[0]).config.about.paper
    title = paper[0].rpartition("/")[0] if title == "none" else title
    count = counted(number.kind for found in numbers.values() for number in found)
    tables = []
    for preset, found in numbers.items():
        original = None if all_of_it else _copied(preset, paper)
        tables.append(_table(preset, found, original=original, originals=numbers[original] if original else ()))
    summary = f"<summary><b>{title}</b>: {count}</summary>"
    return "\n\n".join([f"<details>\n{summary}", *tables, "</details>"])


def _table(preset: str, numbers: Sequence[Stated], *, original: str | None, originals: Sequence[Stated]) -> str:
    same = {(number.key, number.kind, as_written(number.value)) for number in originals}
    shown = [number for number in numbers if (number.key, number.kind, as_written(number.value)) not in same]
    gone = {number.key for number in originals} - {number.key for number in numbers}
    count = counted(number.kind for number in numbers)
    but_for = f"; as `{original}` but for" if original else ""
    without = f"\n\nWithout {', '.join(f'`{key}`' for key in sorted(gone))}." if gone else ""
    rows = ["| key | paper's number | preset's value | provenance |", "|---|---|---|---|", *map(_row, shown)]
    return f"`{preset}`: {count}{but_for}\n\n" + "\n".join(rows if shown else ["(nothing)"]) + without


def _row(number: Stated) -> str:
    cells = (
        f"`{number.key}`",
        papers_number(number),
        f"`{as_written(number.value)}`",
        f"{number.kind}: {reason(number, with_quote=False)}",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
