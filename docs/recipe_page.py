"""Write docs/recipe.md from the code: all fields of a recipe, and which of them follow the data.

Run:    python docs/recipe_page.py
Writes: docs/recipe.md, the same text for the same code (tests/test_docs.py compares them)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mambaout import recipe, rules
from mambaout.fields import Knob, flat_fields, knobs, type_in_words
from mambaout.options import GROUPS, field_text, option
from mambaout.stored_format import FIRST_FIELDS, LEFT_OUT

OPTION_AND_DEFAULT = re.compile(r"^\| `--([a-z0-9-]+)` \|.* \| (.*) \| .* \|$", re.MULTILINE)
PAGE = Path(__file__).with_name("recipe.md")
HEADER = ("field", "meaning", "unit", "allowed", "default", "source of the default")

BEFORE = """\
# The fields of a recipe

This page is made from the code. `python docs/recipe_page.py` writes it; do not edit it by hand.

A **recipe** holds every value that decides the result of a training, except the seed and the
data. One such value is a **field**. You can set a field in three places:

- as an option of every sweep and of `mambaout train`: `--peak-lr 8e-3`. The option of a field is
  its name with dashes;
- in Python: `tuned(BASELINE, peak_lr=8e-3)`, with `from mambaout.recipe import BASELINE, tuned`;
- in a file: `mambaout train --recipe FILE` reads the `recipe.json` of a run.

The field `init` is the exception: its option `--init FILE` names the file of the weights, and the
recipe keeps the digest of their content.

A field that you do not set [follows your data](#what-follows-your-data). The column *default*
holds the value of a field that does not follow. A value that is out of its range is refused.
Values that do not go together are refused too, for example a warm-up that is longer than the
training. One message names all that is wrong.

In the column *source*, *paper* is [MambaOut](https://arxiv.org/abs/2405.07992), and *our choice*
is a choice of this project.
"""
FOLLOWS = """\
## What follows your data

The paper's values are for 1.28 million photographs of 224 px. They hardly train a network on a
few thousand images. So these fields follow the data, unless you set them. Data are *small* if
there are fewer than 50,000 training images, or if the images have at most 64 px. `--plan` and
every launch print which fields follow, to which value, and why. The rules are the same for every
sweep and for `mambaout train`.
"""
WEIGHTS = """\
With `--init FILE` a training starts from trained weights, and these fields differ:
"""
DEVICE = """\
One field follows the device: `precision` is bf16 on accelerators that have bf16 units, and fp32
elsewhere. `--precision fp32`, `--precision tf32` or `--precision bf16` sets it. tf32 is for
NVIDIA GPUs from compute capability 8.0 on; other devices refuse it.

A field that you set is kept, and the others follow it. For example, a larger `--global-batch`
raises `peak_lr`. What the rules reach on small data:
[results](results.md#what-the-rules-for-small-data-reach).
"""
DISAGREE = """\
## Where paper and released code disagree

Both are ordinary recipes: `BASELINE` is the paper, `RELEASED_CODE` is the authors' code.
"""


def main() -> None:
    if unsaid := changed_defaults(PAGE.read_text()):
        sys.exit("\n".join(unsaid))
    PAGE.write_text(page())
    print(PAGE.name)


def changed_defaults(before: str) -> list[str]:
    """A line for each field that has another default than in the page `before`, where what stored
    recipes without the field mean would change with it."""
    now, lines = flat_fields(recipe.BASELINE), []
    for name, text in re.findall(
        r"^\| `--([a-z0-9-]+)` \|.* \| (.*) \| .* \|$", before, re.MULTILINE
    ):
        name = name.replace("-", "_")
        if name not in now or name in FIRST_FIELDS or name in LEFT_OUT:
            continue
        if text != field_text(now[name]):
            lines.append(
                f"the default of {name} was {text}, which is what recipes stored without the field "
                f"mean: add the line\n    {name!r}: {recipe.parse_field(name, text)!r},\nto "
                "LEFT_OUT in mambaout/stored_format.py, then run this again"
            )
    return lines


def page() -> str:
    """The whole page."""
    parts = [BEFORE]
    values = flat_fields(recipe.BASELINE)
    for owner, (title, note) in GROUPS.items():
        rows = [_row(name, said, values[name]) for name, said in knobs(owner).items()]
        parts += [f"## {title.capitalize()}\n", *([f"{note}\n"] if note else []), _table(rows)]
    (follows, weights), (disagree,) = (_tables(one.__doc__ or "") for one in (rules, recipe))
    parts += [FOLLOWS, follows, WEIGHTS, weights, DEVICE, DISAGREE, disagree]
    return "\n".join(parts).rstrip() + "\n"


def _row(name: str, said: Knob, default: object) -> tuple[str, ...]:
    hint = recipe.field_types()[name]
    choices = ", ".join(map(str, said.choices))
    allowed = f"one of {choices}" if choices else type_in_words(hint, said.bound)
    source = said.source or "our choice"
    return (
        f"`{option(name)}`",
        said.help,
        said.unit or "",
        allowed.replace("a finite number, ", "").replace("a whole number", "whole"),
        field_text(default),
        source,
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [HEADER, tuple("---" for _ in HEADER), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _tables(docstring: str) -> list[str]:
    """The Markdown tables of a docstring, each as its lines."""
    return re.findall(r"(?:^\|.*\n)+", docstring, re.MULTILINE)


if __name__ == "__main__":
    main()
