"""LoRA files: what was trained, written in the formats of its clients, read once, and verified.

A file is written by one writer, read once as one object, and checked by one verifier, which reads
it as each client does and compares it with the trained student.
"""
