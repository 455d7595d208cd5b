"""The window that prepares a scan: how it is read, cut and corrected, with a picture of what comes out."""
