"""Labelled pictures, whatever they are stored in."""
