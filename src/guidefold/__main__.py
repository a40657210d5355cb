"""The program: ``guidefold``, and ``python -m guidefold``, which ``accelerate launch`` needs."""


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly, also while it is imported."""
    try:
        from guidefold.cli.main import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
