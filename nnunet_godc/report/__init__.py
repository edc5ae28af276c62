"""One page to look at, from what was evaluated: `write_page` does the whole."""

from nnunet_godc.report.page import Page, write_page

__all__ = ["Page", "write_page"]
