"""The command ``sklconv``: what it computes and prints."""
