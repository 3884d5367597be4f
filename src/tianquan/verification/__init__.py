"""Verification: a self-check of a checkpoint for those who have its weights."""
