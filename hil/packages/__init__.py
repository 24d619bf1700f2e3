"""Recipes for inference packages: each builds a package directory from a public model."""
