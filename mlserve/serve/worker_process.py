"""A worker's process, from its first instruction: while it is small it appoints who speaks for it when it is killed.

python -m mlserve.serve.worker_process < settings    (started by the supervisor; not a command for people)
"""

from mlserve.serve.life.last_words import appoint

__all__ = ["main"]


def main() -> None:
    """Runs one worker to its end."""
    will = appoint()
    from mlserve.serve.worker import main as work  # large, and so it comes second

    work(will)


if __name__ == "__main__":
    main()
