"""Tensors in, tensors out: nothing here knows a file, a picture or a screen."""
