"""CT scans in HDF5 and of vendors."""
