"""Annotation formats: each is read, checked and written in one place."""
