"""From measured numbers to what the physics describes."""
