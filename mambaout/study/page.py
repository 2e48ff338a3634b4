"""The study's report as one HTML file: no script, nothing fetched, readable from phone to desktop.

Reads from top to bottom as an answer: the question, what the runs say, the charts, the ranked
table, every trial with the command that runs it again, and how to read the numbers.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mambaout.study.rows import Row, hours_text, percent_text, rate_text
from mambaout.study.study import Run
from mambaout.train.metrics import IMAGES_PER_SECOND, MINIVAL_TOP1, TOP1, TRAIN_DEVICE_HOURS

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e9; --tint: #f5f7fa;
        --accent: #2563a8; --base: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.7rem; margin: 0; line-height: 1.2; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
.question { color: var(--soft); font-size: 1.05rem; margin: 6px 0 0; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 0; padding: 0; list-style: none; }
.chips li { background: var(--tint); border: 1px solid var(--line); border-radius: 999px;
            padding: 2px 12px; font-size: .85rem; color: var(--soft); }
.answer { background: var(--tint); border-left: 4px solid var(--accent); padding: 4px 18px;
          border-radius: 4px; margin: 20px 0 0; }
.answer p { margin: 12px 0; max-width: 85ch; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
          gap: 20px; align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 10px;
         background: #fff; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: var(--soft); padding: 6px 4px 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
tr:last-child td { border-bottom: 0; }
th { background: var(--tint); font-weight: 600; }
th.text, td.text { text-align: left; }
td.note { white-space: normal; min-width: 13em; color: var(--soft); }
tr.baseline td { background: #fff7f2; }
tr.chosen td.name { font-weight: 700; }
td.name, th.name { position: sticky; left: 0; background: #fff; z-index: 1; }
th.name { background: var(--tint); }
tr.baseline td.name { background: #fff7f2; color: var(--base); }
details.trial { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 6px;
                padding: 6px 12px; }
details.trial summary { cursor: pointer; font-variant-numeric: tabular-nums; font-size: .92rem; }
details.trial summary span { color: var(--soft); margin-left: .6em;
                             display: inline-block; }
code { font: .84rem/1.45 ui-monospace, "DejaVu Sans Mono", Consolas, monospace;
       overflow-wrap: anywhere; }
pre { margin: 8px 0 4px; padding: 8px 10px; background: var(--tint); border-radius: 4px;
      white-space: pre-wrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0;
     font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.notes { font-size: .9rem; color: var(--soft); max-width: 85ch; padding-left: 1.2em; }
@media (max-width: 560px) {
  main { padding: 16px 12px 32px; } h1 { font-size: 1.35rem; } .answer { padding: 2px 12px; }
  figure { padding: 4px; } th, td { padding: 6px 8px; } dl { grid-template-columns: 1fr; }
  dd { margin: 0 0 6px; }
}
"""

CAPTIONS = {
    "accuracy_macs.png": "Up and to the left is better. The dashed line joins the recipes that no "
    "other beats on both axes; an arrow at the lower edge is a recipe that lies below the chart.",
    "accuracy_throughput.png": "Up and to the right is better. Images/s as measured while the "
    "trials of the study shared the machine.",
    "learning_curves.png": "One line a seed, light to dark by MACs; a cross marks a run that "
    "diverged.",
    "training_loss.png": "Against the targets that mixing and smoothing make, so it does not fall "
    "to 0.",
}

_NOTES = (
    "Top-1 in percent of val, which is looked at once, after the last step; recipes are chosen on "
    "minival, a part of the training images that is not trained on.",
    "± is the sample standard deviation over seeds, n their number. A single seed says nothing "
    "about noise.",
    "Differences are called beyond seed noise where they leave the 95 % interval of Student's t "
    "with the spread pooled over recipes. The noise from the size of val is not in it, nor is the "
    "search for the best of many.",
    "MACs are multiply-adds of one image, one forward. Images/s count the whole trial's global "
    "batch in training, without the first step.",
)


def page(
    study: Mapping[str, Any],
    table: Sequence[Row],
    said: Sequence[str],
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    charts: Mapping[str, bytes],
    commands: Mapping[str, str],
) -> str:
    """The page's HTML.

    `study` is what study.json holds, `said` the answer's sentences, `header` and `cells` the
    ranked table (a row of cells a row of `table`), `charts` PNG bytes by file name, `commands` by
    trial key.
    """
    runs = [run for row in table for run in row.runs]
    body = [
        f"<h1>{escape(study['name'])}</h1>",
        f'<p class="question">{escape(study["question"])}</p>',
        f'<ul class="chips">{_chips(runs)}</ul>',
        f'<section class="answer">{_paragraphs(said)}</section>',
        "<h2>Charts</h2>",
        f'<div class="charts">{_figures(charts)}</div>',
        "<h2>Recipes, best first</h2>",
        f'<div class="scroll">{_table(table, header, cells)}</div>',
        "<h2>Every trial, and the command that runs it again</h2>",
        *(_trial(run, commands[run.trial.key]) for run in runs),
        "<h2>Where this comes from</h2>",
        f"<dl>{_origin(study, runs)}</dl>",
        "<h2>How to read it</h2>",
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in _NOTES)}</ul>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study['name'])}: study report</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _paragraphs(said: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text).replace(' %', '&nbsp;%')}</p>" for text in said)


def _chips(runs: Sequence[Run]) -> str:
    states = Counter(run.status for run in runs)
    texts = [f"{len(runs)} trials"] + [f"{count} {state}" for state, count in states.items()]
    hours = sum(run.metrics.get(TRAIN_DEVICE_HOURS, 0) for run in runs)
    texts += [f"{hours_text(hours)} of training"] if hours else []
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _figures(charts: Mapping[str, bytes]) -> str:
    parts = []
    for name, body in charts.items():
        caption = escape(CAPTIONS.get(name, ""))
        source = f"data:image/png;base64,{base64.b64encode(body).decode()}"
        alt = escape(name.removesuffix(".png").replace("_", " "))
        image = f'<img alt="{alt}" src="{source}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "".join(parts)


def _table(table: Sequence[Row], header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    # The name leads, so that it can stay in view while a narrow screen scrolls the rest.
    order = [1, 0, *range(2, len(header))]
    classes = {1: "text name", len(header) - 1: "text note"}

    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{classes.get(i, "")}">{escape(texts[i])}</{tag}>' for i in order
        )

    rows = []
    for row, texts in zip(table, cells, strict=True):
        kinds = ["baseline"] * row.is_baseline + ["chosen"] * ("chosen" in texts[-1])
        rows.append(f'<tr class="{" ".join(kinds)}">{line("td", texts)}</tr>')
    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _trial(run: Run, command: str) -> str:
    figures = [run.status]
    for name, text in (
        (TOP1, lambda value: f"top-1 {percent_text(value)}"),
        (MINIVAL_TOP1, lambda value: f"minival {percent_text(value)}"),
        (IMAGES_PER_SECOND, lambda value: f"{rate_text(value)} images/s"),
        (TRAIN_DEVICE_HOURS, hours_text),
    ):
        if name in run.metrics:
            figures.append(text(run.metrics[name]))
    if error := run.facts.get("error"):
        figures.append(str(error))
    shown = "".join(f"<span>{escape(text)}</span>" for text in figures)
    name = f"<b>{escape(run.trial.name)}</b>"
    return (
        f'<details class="trial"><summary>{name}{shown}</summary>'
        f"<pre><code>{escape(command)}</code></pre></details>"
    )


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
