"""Trained networks and features, kept between fits in a folder."""
