"""X: its forms, image files, and what it takes to make all images one size."""
