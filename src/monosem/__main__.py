"""The program, also as `python -m monosem`: Ctrl-C is answered before anything else is imported."""

from .terminal import answer_interrupts


def main() -> None:
    answer_interrupts()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
