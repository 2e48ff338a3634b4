"""The network, parameters named as timm names them."""
