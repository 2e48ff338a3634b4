"""Parquet shards: their location, their content, and the rows of each split. Home of pyarrow.

In:  a folder or an address.
Out: a `DataSet` (data_set.py), and any row's encoded image (encoded.py).
Read: data_set.py, shard_files.py, described_set.py, columns.py, parquet.py, files.py, encoded.py,
description.py.
"""
