"""The mathematics: tensors in, tensors out. Nothing here knows a file, a picture or a screen."""
