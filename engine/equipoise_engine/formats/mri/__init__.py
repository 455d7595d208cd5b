"""MRI raw data."""
