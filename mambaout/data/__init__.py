"""From image files to batches of one shape.

In:  the value of `--data`: a named set, a folder, a tar, or Parquet shards here or in a bucket.
Out: a `DataSet`, and uint8 batches; a batch depends only on its number.
Read: the folders in the order of the data: shards, images, batches. packing turns anything else
into shards. draws.py has every random draw.
"""
