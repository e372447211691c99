"""Training: epochs, skorch's net, optimizers."""
