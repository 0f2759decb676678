"""Reward models: sources that are one, and what training one needs."""
