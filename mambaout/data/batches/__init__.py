"""From rows to batches, by processes that share memory; and the device's part of augmentation.

In:  a `DataSet`, a recipe, a seed.
Out: any batch, from its number alone, the same from any process.
Read: loader.py (what training asks for), makers.py (one batch), ring.py (the processes), slots.py
(the memory that they share), device_augment.py.
"""
