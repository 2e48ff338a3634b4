"""From an encoded image to the pixels of a crop.

In:  a JPEG or PNG file's bytes, and an image's draws.
Out: uint8 pixels, computed like in Pillow and timm (`exact`) or in a single pass (`fast`).
Read: augment.py, decode.py, jpeg.py and jpeg_crop.py, resample.py, randaugment.py;
../../native.py compiles the C files.
"""
