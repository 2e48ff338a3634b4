"""What to try next. Home of Optuna (memory.py, importances.py).

In:  the axes of a `Search`, and how its trials ended.
Out: the next trial (an Agenda), and the best recipe so far.
Read: space.py, best.py, memory.py, search_agenda.py, chain.py, study_agenda.py. ladder.py makes the
shapes of a scaling study, and catalogue.py has those that the studies choose from.
"""
