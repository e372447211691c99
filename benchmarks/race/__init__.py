"""The race between contenders: their processes and turns, their tasks, the tables of it all."""
