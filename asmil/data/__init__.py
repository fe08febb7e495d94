"""Bags, labels and splits: stored, joined, cut and read. Knows no model, task or metric."""
