"""The trainer of the bundled teacher.

No user runs it and the package does not need it: run ``python -m teacher.train_teacher`` in the
repository's root to train a teacher, ``python -m teacher.measure_teacher`` to measure one.
"""
