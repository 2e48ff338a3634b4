"""What to try next. Home of Optuna (memory.py, importances.py).

In:  the axes of a `Search`, and the results of its trials.
Out: the next trial (an Agenda), and the best recipe so far.
Read: space.py, best.py, first_draws.py, memory.py, candidates.py, ledger.py, search_agenda.py,
more_seeds.py, chain.py, study_agenda.py. ladder.py makes shapes of equal cost. catalogue.py holds
the shapes from which the studies choose.
"""
