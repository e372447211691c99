"""Pretrained networks: their libraries, weights, preprocessing and heads."""
