"""Networks as estimators use them: built, run over batches, shown as tables."""
