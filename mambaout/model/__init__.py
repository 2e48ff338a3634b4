"""The network and its token mixers, with timm's parameter names.

In:  a `ModelConfig`.
Out: `MambaOut`, and weights read from or written for timm, or as ONNX.
Read: network.py, first_weights.py, mixers.py, weights.py, timm_call.py, onnx_file.py.
"""
