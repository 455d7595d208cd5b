"""The widgets. Each has `show_change(old, new)`, which applies the differences between two states."""
