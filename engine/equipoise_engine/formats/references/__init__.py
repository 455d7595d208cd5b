"""Image volumes to compare with."""
