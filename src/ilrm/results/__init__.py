"""What a run leaves: a folder with splats, cameras, photos and numbers, or any splat file with what lies beside it."""

from ilrm.results.result import Result, load_result, result_of

__all__ = ["Result", "load_result", "result_of"]
