"""Folders, tars and named sets to shards.

In:  whatever a user has: NAMED sets, image folders, tars, idx files.
Out: Parquet shards in the cache or in a folder of the user's, and what was left out, said.
Read: sources.py (open_data), named_sets.py, walk.py, image_layout.py, image_tree.py, image_tar.py,
idx.py, then storing.py and pack.py; stage.py copies shards to a machine, sizes.py and damage.py
look at images; data_option.py is --data.
"""
