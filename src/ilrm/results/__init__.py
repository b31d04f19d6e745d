"""Reading and writing results: a folder with splats, cameras, photos and metrics, or any splat file."""

from ilrm.results.result import Result, load_result, result_of

__all__ = ["Result", "load_result", "result_of"]
