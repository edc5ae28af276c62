"""One page to look at, from what was evaluated: `nnunet_godc.report.page.write_page` does the whole."""
