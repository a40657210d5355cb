"""Training: batches, student, loss, optimizer, checkpoints, the loop, and the dial measured.

It turns the recorded states of a teacher into an adapter, step by step and exactly resumable.
"""
