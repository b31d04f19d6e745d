"""Viewing results in a browser: a live viewer with a server, or a page that needs no server."""

from ilrm.view.page import save_page

__all__ = ["save_page"]
