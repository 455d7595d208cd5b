"""Projectors: line integrals through images and volumes, and their exact transposes."""
