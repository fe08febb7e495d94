"""Hyperparameter search; the only package that imports Ray and Optuna."""
