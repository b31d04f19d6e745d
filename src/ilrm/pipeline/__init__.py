"""From photos to results: every choice between a scene and a folder of files, for Python and the command alike.

Nothing is imported here: ``options`` is read by the command line before torch is loaded.
"""
