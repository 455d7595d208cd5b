"""The Equipoise window: shows and asks; computes nothing and parses no measured file."""
