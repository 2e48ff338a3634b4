"""The rules that a cluster file is checked by: `mambaout doctor --cluster FILE`.

In:  YAML for `ray up`, KubeRay or a job.
Out: what is wrong with it, a line each.
Read: cluster_files.py, then one file for each kind.
"""
