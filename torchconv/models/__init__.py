"""Whole models: torchconv.convert, revert and converting, and torchconv.explain."""
