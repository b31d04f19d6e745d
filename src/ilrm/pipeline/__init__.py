"""From photos to results: all choices that Python calls and commands share.

This file imports nothing, because the command line reads ``options`` before torch is loaded.
"""
