"""The style sheet of the report. It is part of the page, so the page needs no other file."""

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e9; --tint: #f5f7fa;
        --accent: #2563a8; --base: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.7rem; margin: 0; line-height: 1.2; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
.question { color: var(--soft); font-size: 1.05rem; margin: 6px 0 0; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0 0; padding: 0; list-style: none; }
.chips li { background: var(--tint); border: 1px solid var(--line); border-radius: 999px;
            padding: 2px 12px; font-size: .85rem; color: var(--soft); }
.answer { background: var(--tint); border-left: 4px solid var(--accent); padding: 4px 18px;
          border-radius: 4px; margin: 20px 0 0; }
.answer p { margin: 12px 0; max-width: 95ch; }
.answer p.lead { font-weight: 600; }
.said p, .said li { max-width: 85ch; } .said p { margin: 8px 0; }
.scroll + .charts, .charts + .scroll, .said + .charts, .said + .scroll,
.scroll + .scroll { margin-top: 14px; }
td.name a { color: inherit; text-decoration: none; } td.name a:hover { text-decoration: underline; }
.charts figure.wide { grid-column: 1 / -1; }
.charts figure.wide img { width: auto; max-width: 100%; max-height: 900px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr));
          gap: 20px; align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 10px;
         background: #fff; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: var(--soft); padding: 6px 4px 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
tr:last-child td { border-bottom: 0; }
th { background: var(--tint); font-weight: 600; }
th.text, td.text { text-align: left; }
td.note, td.long { white-space: normal; text-align: left; } th.long { text-align: left; }
td.long { min-width: 17em; }
td.note { min-width: 12em; color: var(--soft); }
tr.baseline td { background: #fff7f2; }
tr.chosen td.name { font-weight: 700; }
td.name, th.name { position: sticky; left: 0; background: #fff; z-index: 1; }
th.name { background: var(--tint); }
tr.baseline td.name { background: #fff7f2; color: var(--base); }
.legend p { margin: 4px 0; font-size: .9rem; color: var(--soft); max-width: 110ch; }
.scroll + .legend { margin-top: 10px; } h2 + .legend { margin-bottom: 10px; }
details.trial p { margin: 8px 0 0; font-size: .9rem; color: var(--soft); }
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
