"""Kinds of input with a fault each, which the benchmark has to find."""
import os
import time
from pathlib import Path
from random import Random

from qwen_image_2.messages import Refusal
from qwen_image_2.tools.attacks.attempt import Kind

kept = []   # what a leak has not given back


def prepare(folder: Path) -> None:
    """None of them needs ComfyUI."""


def planted(work):
    """A kind whose inputs are numbers from 0 to 999. work: of one of them."""
    def kind(folder: Path) -> Kind:
        return Kind(lambda rng: rng.randrange(1000), work)
    return kind


def sound(number: int) -> list[str]:
    if number % 2:
        raise Refusal("odd", "The number {number} is odd.", number=number)
    return ["Taken."]


def traceback(number: int) -> list[str]:
    if number % 5 == 0:
        raise KeyError(f"planted {number}")
    return sound(number)


def slow(number: int) -> list[str]:
    if number % 5 == 0:
        time.sleep(600)
    return sound(number)


def long_note(number: int) -> list[str]:
    return ["a" * (401 if number % 5 == 0 else 400)]


def long_refusal(number: int) -> list[str]:
    if number % 5 == 0:
        raise TooLong
    return sound(number)


class TooLong(Refusal):
    def __init__(self):
        super().__init__("too_long", "Too long.")

    def __str__(self) -> str:
        return "a" * 401


def growth(number: int) -> list[str]:
    """Given back at once: only the peak tells."""
    if number % 5 == 0:
        os.urandom(1) * 300_000_000
    return sound(number)


def leak(number: int) -> list[str]:
    """A little with each input."""
    kept.append(os.urandom(1) * 45_000_000)
    return sound(number)


def crash(number: int) -> list[str]:
    if number % 5 == 0:
        os._exit(7)
    return sound(number)


KINDS = {work.__name__: planted(work)
         for work in (sound, traceback, slow, long_note, long_refusal, growth, leak, crash)}


def faulty(name: str, seed: int, numbers: range) -> list[int]:
    """The numbers whose input is one that the faulty kinds go wrong with."""
    return [number for number in numbers if Random(f"{name} {seed} {number}").randrange(1000) % 5 == 0]
