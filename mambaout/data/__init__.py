"""Parquet shards to fixed-shape batches; home of pyarrow and of timm's augmentations."""
