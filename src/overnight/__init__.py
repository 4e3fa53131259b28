"""Overnight: the operations layer under AI agents."""
