"""Images that this program writes."""
