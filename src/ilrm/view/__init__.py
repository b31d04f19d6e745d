"""Looking at results: in a browser while a server runs, or as a page that needs none."""

from ilrm.view.page import save_page
from ilrm.view.result import Result, load_result

__all__ = ["Result", "load_result", "save_page"]
