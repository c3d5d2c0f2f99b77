"""A page of memory that one worker shares with its supervisor: what each has to tell the other, while either may die.

    the worker writes      its heartbeat; which models it runs at this moment; who speaks for it when it is dead
    the supervisor writes  whether to hurry, whether memory is short, which models are held back, which workers are away

It is memory alone, in no folder: it works on a full disk, and goes with its processes, however they end.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import msgspec

__all__ = ["Key", "Place", "Slate", "open_slate"]

Key = tuple[str, str]
"""A model's name and version."""

_BYTES = 128 << 10
_WORD = 8
# Numbers of the head.
_BEATS, _HURRY, _SHORT, _HELD_CHANGES, _HELD_SIZE, _EXECUTOR, _AWAY = range(7)
# Then what is held back, then the places: numbers of runs begun and ended, the length of the key, the key.
_HELD_AT, _PLACES_AT, _PLACE_BYTES = 64, 16 << 10, 512
_KEY_LENGTH, _KEY_AT = 2, 24


class Place:
    """Where a worker notes the runs of one loaded model: `numbers` are how many began, and how many of them ended.

    The two differ while something runs. What ends sets the one to the other, so that threads that count at once may
    lose a run, but leave no difference behind.
    """

    def __init__(self, slate: "Slate | None", index: int, numbers: "memoryview[int]") -> None:
        self._slate, self._index, self.numbers = slate, index, numbers

    def free(self) -> None:
        """Nothing of the model runs any more."""
        if self._slate is not None:
            self._slate.free(self._index)
            self._slate = None


class Slate:
    """One worker's. `descriptor` is what a child inherits; None: for this process alone."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, _BYTES)
        self._numbers = memoryview(self._memory).cast("Q")
        self._held_seen = 0
        self._held_found: Mapping[Key, str] = {}

    @classmethod
    def shared(cls) -> "Slate":
        """A new one, for a child to inherit. Raises OSError where there is no file, or no memory, to be had."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mlserve-slate", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, _BYTES)
            return cls(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Gives the memory back; what was read before stays known."""
        self._numbers.release()
        self._memory.close()
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    # The heartbeat

    def beat(self) -> None:
        """The worker's event loop turns."""
        self._numbers[_BEATS] += 1

    @property
    def beats(self) -> int:
        """How often it has beaten."""
        return self._numbers[_BEATS]

    @property
    def executor(self) -> int:
        """The number of the process that says the worker's last words; 0 for none."""
        return self._numbers[_EXECUTOR]

    @executor.setter
    def executor(self, process_id: int) -> None:
        self._numbers[_EXECUTOR] = process_id

    # What runs

    def place(self, name: str, version: str) -> Place:
        """Where the runs of a model are noted; one that nobody reads, where there is no more room."""
        key = msgspec.json.encode((name, version))
        for index in range(_PLACES_AT, _BYTES, _PLACE_BYTES):
            first = index // _WORD
            if not self._numbers[first + _KEY_LENGTH] and len(key) <= _PLACE_BYTES - _KEY_AT:
                self._numbers[first] = self._numbers[first + 1] = 0
                self._memory[index + _KEY_AT : index + _KEY_AT + len(key)] = key
                self._numbers[first + _KEY_LENGTH] = len(key)  # last: a reader never sees half a key
                return Place(self, index, self._numbers[first : first + 2])
        return Place(None, 0, memoryview(bytearray(2 * _WORD)).cast("Q"))

    def free(self, index: int) -> None:
        """Nobody notes anything at this place any more."""
        self._numbers[index // _WORD + _KEY_LENGTH] = 0

    @contextmanager
    def noted(self, name: str, version: str) -> Iterator[None]:
        """Notes that a model is being loaded, for as long as the block takes."""
        place = self.place(name, version)
        place.numbers[0] = 1
        try:
            yield
        finally:
            place.free()

    def runs(self) -> dict[Key, tuple[bool, int]]:
        """Of every model in the worker: whether something of it runs, or it is being loaded; how many runs ended."""
        found: dict[Key, tuple[bool, int]] = {}
        for index in range(_PLACES_AT, _BYTES, _PLACE_BYTES):
            first = index // _WORD
            length = self._numbers[first + _KEY_LENGTH]
            if length:
                key = msgspec.json.decode(self._memory[index + _KEY_AT : index + _KEY_AT + length], type=Key)
                began, ended = self._numbers[first], self._numbers[first + 1]
                running, before = found.get(key, (False, 0))
                found[key] = running or began != ended, before + ended
        return found

    # What the supervisor has to say

    @property
    def hurry(self) -> bool:
        """Whether a worker that is told to stop shall do without a lame duck's time."""
        return bool(self._numbers[_HURRY])

    @hurry.setter
    def hurry(self, value: bool) -> None:
        self._numbers[_HURRY] = value

    @property
    def short_of_memory(self) -> bool:
        """Whether new requests are to be refused for want of memory."""
        return bool(self._numbers[_SHORT])

    @short_of_memory.setter
    def short_of_memory(self, value: bool) -> None:
        self._numbers[_SHORT] = value

    @property
    def away(self) -> int:
        """At whose doors another is to stand in: a bit for each worker, by its number."""
        return self._numbers[_AWAY]

    @away.setter
    def away(self, value: int) -> None:
        self._numbers[_AWAY] = value

    def hold(self, held: Mapping[Key, str]) -> None:
        """Holds back the models `held`, each for a reason. What there is no room for is not held."""
        entries = [(*key, reason) for key, reason in held.items()]
        content = msgspec.json.encode(entries)
        while len(content) > _PLACES_AT - _HELD_AT:
            entries.pop()
            content = msgspec.json.encode(entries)
        changes = self._numbers[_HELD_CHANGES]
        self._numbers[_HELD_CHANGES] = changes | 1  # odd: it is being changed
        self._memory[_HELD_AT : _HELD_AT + len(content)] = content
        self._numbers[_HELD_SIZE] = len(content)
        self._numbers[_HELD_CHANGES] = (changes | 1) + 1

    def held(self) -> Mapping[Key, str]:
        """The models that are held back, and why. While they are being changed: those from before."""
        changes = self._numbers[_HELD_CHANGES]
        if changes != self._held_seen and not changes % 2:
            content = self._memory[_HELD_AT : _HELD_AT + self._numbers[_HELD_SIZE]]
            if self._numbers[_HELD_CHANGES] == changes:
                entries = msgspec.json.decode(content, type=list[tuple[str, str, str]])
                self._held_found = {(name, version): reason for name, version, reason in entries}
                self._held_seen = changes
        return self._held_found


@cache
def open_slate(descriptor: int) -> Slate:
    """The slate of this process, the same one for everybody; `descriptor` -1: it has no supervisor."""
    return Slate(None if descriptor < 0 else descriptor)
