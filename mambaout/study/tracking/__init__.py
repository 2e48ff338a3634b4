"""A study in MLflow. Home of mlflow (tracker.py, tracked_study.py, mlflow_client.py).

In:  run directories.
Out: one parent run a study, one child run a trial (found again by the trial's key), MLflow's pages.
Read: tracker.py, tracked_study.py, tracked_run.py. store.py checks whether a store can work.
"""
