"""When a version that did not load is tried again."""

from mlserve.serve.versions.attempts import Attempts, Failure

KEY = ("m", "2")


def failing(error="it is damaged", files="as they were", command=0):
    return Failure(error, error, files, command)


def test_the_pause_doubles_up_to_a_minute_and_the_news_is_told_once():
    attempts, now_s = Attempts(), 100.0
    assert attempts.failed(KEY, failing(), now_s)
    pauses = []
    for _ in range(9):
        retry_at_s = attempts.failures[KEY].retry_at_s
        pauses.append(retry_at_s - now_s)
        assert not attempts.due(KEY, "as they were", 0, retry_at_s - 0.01)
        assert attempts.due(KEY, "as they were", 0, retry_at_s)
        now_s = retry_at_s
        assert not attempts.failed(KEY, failing(), now_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert attempts.failed(KEY, failing("another reason"), now_s)


def test_it_is_due_at_once_when_its_files_change_and_the_pause_begins_anew():
    attempts = Attempts()
    for _ in range(5):
        attempts.failed(KEY, failing(), 0.0)
    assert attempts.due(KEY, "changed", 0, 0.0)
    attempts.failed(KEY, failing(files="changed"), 0.0)
    assert attempts.failures[KEY].retry_at_s == 1.0


def test_it_is_due_at_once_when_a_client_asks_for_it_again():
    attempts = Attempts()
    attempts.failed(KEY, failing(command=3), 0.0)
    assert not attempts.due(KEY, "as they were", 3, 0.0)
    assert not attempts.due(KEY, None, 3, 0.0)  # nobody has looked at its files since
    assert not attempts.untried(KEY, 3)
    assert attempts.due(KEY, "as they were", 4, 0.0)
    assert attempts.untried(KEY, 4)


def test_what_loaded_is_forgotten():
    attempts = Attempts()
    attempts.failed(KEY, failing(), 0.0)
    attempts.forget([KEY, ("m", "3")])
    assert attempts.untried(KEY, 0)
