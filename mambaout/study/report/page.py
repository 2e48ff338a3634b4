"""The study's report as one HTML file: no scripts, no downloads, readable on phone and desktop.

From top to bottom, the page has the question, the answer, the sections with charts and tables, the
ranked table, every trial with the command that runs it again, and how to read the numbers.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from mambaout.endings import Ending
from mambaout.numbers import counted, hours_text, percent_text, rate_text
from mambaout.study.branches import shared_device_hours
from mambaout.study.report.content import Content, Section, Table
from mambaout.study.report.page_style import STYLE
from mambaout.study.report.rows import Row
from mambaout.study.report.tables import CHOSEN, NAME, NOTE, RankedTable
from mambaout.study.speeds import device_of
from mambaout.study.study import Run
from mambaout.train.metrics import IMAGES_PER_SECOND, MINIVAL_TOP1, TOP1, TRAIN_DEVICE_HOURS
from mambaout.train.tasks import CLASSIFY

MAX_BYTES = 990_000  # of the page, so that it can be committed and mailed
MAX_ROWS = 100  # of the ranked table
MAX_TRIALS = 200  # shown with their command; trials.csv has all


HEADING = "Recipes, highest on minival first"
NOTES = (
    "Top-1 is in percent. Minival is training images that are held out to choose on: recipes are "
    "ranked on it, and the front of the charts is chosen on it. Val is the test set, which is "
    "looked at once, after the last step: it says how good what was chosen is. Charts, laws and "
    "differences are in top-1 on val.",
    "± is half the 95 % interval of the mean over n seeds: where the mean of many more seeds would "
    "lie, by Student's t. The spread is pooled over the recipes of the same length of training, or "
    "over all recipes where fewer than four seeds of that length can be compared. All recipes see "
    "the same val images, so what their number adds is not in it.",
    "Two recipes differ beyond noise where the difference leaves its own 95 % interval. That holds "
    "for two recipes that were named beforehand: the best of many looks better than it is.",
    "A result is near chance where a network that guesses could have reached it, minival and val "
    "together; with many recipes the bound is higher, since the best of many guesses is lucky. "
    "A minival of under 100 images is too small to choose by.",
    "MACs are multiply-adds of one image, one forward; training MACs are those of the whole "
    "training, forward and backward. Images/s count the whole trial's global batch in training, "
    "without the first step, while other trials shared the machine; device-hours include the "
    "evaluations.",
)


def page(
    content: Content,
    charts: Mapping[str, bytes],
    commands: Mapping[str, str],
    checkpoints: Mapping[str, str],
) -> str:
    """The page's HTML.

    `charts` has the bytes of the content's pictures. `commands` and `checkpoints` are by trial key.
    A checkpoint is a path from the page; a trial without one is missing.
    """
    study, table, ranked = content.study, content.table, content.ranked
    runs = [run for row in table for run in row.runs]
    top = [
        f"<h1>{escape(study['name'])}</h1>",
        f'<p class="question">{escape(study["question"])}</p>',
        f'<ul class="chips">{_chips(runs)}</ul>',
        f'<section class="answer">{_answer(content.said)}</section>',
        *(_section(section, charts, content.captions) for section in content.sections),
        f"<h2>{escape(content.heading)}</h2>",
        f'<div class="scroll">{_ranked(table[:MAX_ROWS], ranked)}</div>',
        _more(len(table) - MAX_ROWS, "recipes"),
        f'<div class="legend">{_paragraphs([ranked.shared] * bool(ranked.shared))}'
        f"{_paragraphs(ranked.legend)}</div>",
        "<h2>Every trial: its checkpoint, and the command that trains it again</h2>",
        '<div class="legend"><p>Paths are seen from the folder of this page. The command trains '
        "the trial alone, into a new folder.</p></div>",
    ]
    bottom = [
        "<h2>Where this comes from</h2>",
        f"<dl>{_origin(study, runs)}</dl>",
        "<h2>How to read it</h2>",
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in content.notes)}</ul>',
    ]
    room = MAX_BYTES - len(STYLE) - sum(len(part.encode()) + 1 for part in top + bottom) - 2000
    trials: list[str] = []
    for run in runs[:MAX_TRIALS]:
        key = run.trial.key
        text = _trial(run, commands[key], checkpoints.get(key))
        room -= len(text.encode()) + 1
        if room < 0:
            break
        trials.append(text)
    trials.append(_more(len(runs) - len(trials), "trials"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study['name'])}: study report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(top + trials + bottom) + "\n</main>\n</body>\n</html>\n"
    )


def _more(count: int, what: str) -> str:
    if count <= 0:
        return ""
    return f'<p class="question">{count} more {what} are in trials.csv and trials.parquet.</p>'


def _section(section: Section, charts: Mapping[str, bytes], captions: Mapping[str, str]) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.said:
        parts.append(f'<div class="said">{_paragraphs(section.said)}</div>')
    parts += [f'<div class="scroll">{_table(table)}</div>' for table in section.tables]
    figures = "".join(_figure(n, charts[n], captions.get(n, "")) for n in section.charts)
    if figures:
        parts.append(f'<div class="charts">{figures}</div>')
    return "\n".join(parts)


def _answer(said: Sequence[str]) -> str:
    """The paragraphs. The answer is in bold; it is the first paragraph that is not a doubt."""
    start = int(said[0].startswith("Provisional"))
    bold = _paragraphs(said[start : start + 1]).replace("<p>", '<p class="lead">')
    return _paragraphs(said[:start]) + bold + _paragraphs(said[start + 1 :])


def _paragraphs(said: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text).replace(' %', '&nbsp;%')}</p>" for text in said)


def _chips(runs: Sequence[Run]) -> str:
    states = Counter(run.status.text for run in runs)
    texts = [counted(len(runs), "trial")] + [f"{count} {state}" for state, count in states.items()]
    hours = sum(run.metrics.get(TRAIN_DEVICE_HOURS, 0) - shared_device_hours(run) for run in runs)
    texts += [f"{hours_text(hours)} of training"] if hours else []
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _figure(name: str, body: bytes, caption: str) -> str:
    kind = "jpeg" if name.endswith(".jpg") else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(body).decode()}"
    alt = escape(name.rpartition(".")[0].replace("_", " "))
    image = f'<img alt="{alt}" src="{source}">'
    tag = '<figure class="wide">' if kind == "jpeg" else "<figure>"  # a sheet of many pictures
    return f"{tag}{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    """A small table. Its first column is a name, which stays in view."""

    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{"text name" if i == 0 else "long" if i in table.long else ""}">'
            f"{escape(text)}</{tag}>"
            for i, text in enumerate(texts)
        )

    rows = "".join(f"<tr>{line('td', texts)}</tr>" for texts in table.cells)
    head = f"<thead><tr>{line('th', table.header)}</tr></thead>"
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def _ranked(table: Sequence[Row], ranked: RankedTable) -> str:
    # The name comes first, so that it stays in view while a narrow screen scrolls the rest.
    order = [1, 0, *range(2, len(ranked.header))]
    kinds_of = {NAME: "text name", NOTE: "text note"}
    classes = [kinds_of.get(name, "") for name in ranked.header]

    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(f'<{tag} class="{classes[i]}">{texts[i]}</{tag}>' for i in order)

    rows = []
    for row, texts in zip(table, ranked.cells, strict=False):
        kinds = ["baseline"] * row.is_baseline + ["chosen"] * (CHOSEN in texts[-1].split("; "))
        shown = [escape(text) for text in texts]
        shown[1] = f'<a href="#{row.runs[0].trial.key}">{shown[1]}</a>'  # to its command
        rows.append(f'<tr class="{" ".join(kinds)}">{line("td", shown)}</tr>')
    head = f"<thead><tr>{line('th', [escape(name) for name in ranked.header])}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _trial(run: Run, command: str, checkpoint: str | None) -> str:
    figures, kind = [run.status.text], run.trial.kind
    words = {MINIVAL_TOP1: "minival", TOP1: "val"}
    if kind is not CLASSIFY:
        words = {kind.final: kind.score, **kind.more}
    for name, text in (
        *((name, partial(_said, words[name])) for name in words),
        (IMAGES_PER_SECOND, lambda value: f"{rate_text(value)} images/s"),
        (TRAIN_DEVICE_HOURS, hours_text),
    ):
        if name in run.metrics:
            figures.append(text(run.metrics[name]))
    if run.status is Ending.FINISHED and IMAGES_PER_SECOND not in run.metrics:  # another device's
        figures += [f"trained on {device}" for device in [device_of(run)] if device]
    if why := run.facts.get("error") or run.facts.get("why"):
        figures.append(str(why))
    shown = "".join(f"<span>{escape(text)}</span>" for text in figures)
    name = f"<b>{escape(run.trial.name)}</b>"
    kept = f"<p>Checkpoint: <code>{escape(checkpoint)}</code></p>" if checkpoint else ""
    return (
        f'<details class="trial"><summary>{name}{shown}</summary>{kept}'
        f'<pre id="{run.trial.key}"><code>{escape(command)}</code></pre></details>'
    )


def _said(score: str, value: float) -> str:
    return f"{score} {percent_text(value)}"


def _origin(study: Mapping[str, Any], runs: Sequence[Run]) -> str:
    def seen(name: str) -> str:
        return ", ".join(sorted({str(run.facts[name]) for run in runs if name in run.facts}))

    facts = {
        "Study command": str(study.get("command", "")),
        "Data": seen("data_name") or str(study.get("data_name", "")),
        "Training images": seen("num_train"),
        "Data fingerprint": ", ".join(sorted({run.trial.data for run in runs})),
        "Commit": seen("git_commit"),
        "Device": seen("device"),
        "Host": seen("host"),
        "Last trial ended": max((str(run.facts.get("ended", "")) for run in runs), default=""),
    }
    return "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text
    )
