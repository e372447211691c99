"""What is raced, a library or a way of writing it a file: ``prepare_*(task)`` returns the call."""
