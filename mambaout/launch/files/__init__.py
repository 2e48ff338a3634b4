"""The rules that check a cluster file: `mambaout doctor --cluster FILE`.

In:  YAML for `ray up`, KubeRay or a job.
Out: what is wrong with it, one line for each fault.
Read: cluster_files.py, then one file for each kind.
"""
