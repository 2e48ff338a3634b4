"""An encoded image to the pixels of a crop.

In:  a JPEG or PNG file's bytes, and a sample's draws.
Out: uint8 pixels, in Pillow's and timm's way (`exact`) or in one look (`fast`).
Read: augment.py, decode.py, jpeg.py and jpeg_crop.py, resample.py, randaugment.py;
../../native.py compiles the C files.
"""
