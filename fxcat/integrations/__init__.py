"""Adapters to other people's trainers, one file each; nothing else of fxcat imports them.

Each one finds the network with gates, makes a `GateController` when the trainer has its optimizer, calls `step()` after
every step of it, and puts the controller's state into the trainer's own checkpoints.
"""
