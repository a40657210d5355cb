"""``python -m guidefold``, which ``accelerate launch -m guidefold`` needs."""

from guidefold.cli.main import main

main()
