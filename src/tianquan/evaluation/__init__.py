"""Evaluation: how often a model is right on records, and how far a format moves it from its reference."""
