"""Drift: whether new images, or stored vectors of them, look as those did that a scan was made from."""
