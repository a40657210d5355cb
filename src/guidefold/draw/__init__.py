"""Pictures: requested by one value, drawn by the stock pipeline and counted, and drawn only once.

A picture depends on its request, the pipeline and the run's settings. The cache keeps what was
drawn under all of that, for the evaluation, the previews while training, and the live page.
"""
