"""Gleaner puts one tabular regression model into production and keeps watch over it."""

__version__ = "0.1.0"
