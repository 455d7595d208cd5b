"""Images on top of each other: single files, pages, folders, and what makes a scan of them."""
