"""From folders, tars and named sets to shards.

In:  a user's images: NAMED sets, image folders, tars, idx files.
Out: Parquet shards in the cache or in the user's folder, and a line that says what was left out.
Read: sources.py (open_data), named_sets.py, walk.py, image_layout.py, image_tree.py, image_tar.py,
idx.py, then storing.py and pack.py. stage.py copies shards to a machine. sizes.py and damage.py
look at images. data_option.py is the option --data.
"""
