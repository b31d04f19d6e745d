"""Looking at results: in a browser while a server runs, or as a page that needs none."""

from ilrm.view.page import save_page

__all__ = ["save_page"]
