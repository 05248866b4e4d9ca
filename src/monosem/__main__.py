"""The program, also as `python -m monosem`: Ctrl-C is answered before anything else is imported."""

import sys

from .terminal import INTERRUPTED, answer_interrupts, notice


def main() -> None:
    try:
        answer_interrupts()
        from .cli import main as run

        run()
    except KeyboardInterrupt:  # between the imports and the command, which answers its own
        notice("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
