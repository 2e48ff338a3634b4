"""The report of a study: its answer, tables and charts. Home of matplotlib.

In:  a study's folder.
Out: report.html, results.md, trials.csv, trials.parquet, charts, and the terminal's table.
Read: study_report.py (what is written), reading.py (what is computed once), ranking.py (the order),
findings.py (the answer in words), fresh.py (the best on fresh seeds), sections.py and page.py (the
page). paired_reading.py and paired_section.py have what is compared within a seed.
"""
