"""From image files to batches of one shape.

In:  what `--data` names: a named set, a folder, a tar, Parquet shards here or in a bucket.
Out: a `DataSet`, and uint8 batches that hang on their number alone.
Read: the rooms in the order of the data: shards, images, batches; packing makes shards of anything
else. draws.py has every random draw.
"""
