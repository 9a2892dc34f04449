"""Multiple-choice tasks, in the files of llama-perplexity, and how many of them a model solves.

A choice is scored by the mean log probability of its tokens behind those that all choices share, as llama-perplexity
does for HellaSwag. The summary over sets is that of the BOF4 paper: NAV ACC, the mean of
(accuracy - chance) / (1 - chance).
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from gguf_bof4.errors import UserError
from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.study.models import Loaded, logits_of
from gguf_bof4.study.tables import TaskRow
from gguf_bof4.study.workers import in_parallel

SEED = 1
_HELLASWAG_LINES = 6


@dataclass(frozen=True)
class Task:
    """A question.

    Attributes:
        choices: whole texts, prompt and answer.
        answer: index of the right one.
    """

    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class TaskSet:
    """Tasks of a file.

    Attributes:
        name: the kind of the file and a hash of its content.
    """

    name: str
    tasks: tuple[Task, ...]

    @property
    def chance(self) -> float:
        """The expected share of right answers by guessing."""
        return fmean(1 / len(task.choices) for task in self.tasks)


def parse_hellaswag(data: bytes) -> list[Task]:
    """Six lines a task: context, number of the right ending, four endings.

    Raises:
        ValueError: it is no such file.
    """
    lines = data.decode("utf-8").splitlines()
    if len(lines) % _HELLASWAG_LINES or not lines:
        raise ValueError(f"{len(lines)} lines are no multiple of {_HELLASWAG_LINES}")
    tasks = []
    for i in range(0, len(lines), _HELLASWAG_LINES):
        context, label, *endings = lines[i : i + _HELLASWAG_LINES]
        if label.strip() not in {"0", "1", "2", "3"}:
            raise ValueError(f"line {i + 2} is {label[:20]!r}, not the number of an ending, 0 to 3")
        tasks.append(Task(tuple(f"{context} {ending}" for ending in endings), int(label)))
    return tasks


def parse_winogrande(data: bytes) -> list[Task]:
    """CSV: number, sentence with a "_", two words for it, and which of them is right, 1 or 2.

    Raises:
        ValueError: it is no such file.
    """
    tasks = []
    for number, row in enumerate(csv.reader(io.StringIO(data.decode("utf-8"))), 1):
        if not row:
            continue
        if len(row) != 5 or "_" not in row[1] or row[4].strip() not in {"1", "2"}:
            raise ValueError(f"line {number} is not: number, sentence with _, choice, choice, 1 or 2")
        before, _, after = row[1].partition("_")
        tasks.append(Task((before + row[2] + after, before + row[3] + after), int(row[4]) - 1))
    if not tasks:
        raise ValueError("it has no tasks")
    return tasks


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def integer(self) -> int:
        if self.at + 4 > len(self.data):
            raise ValueError("it ends early")
        (value,) = struct.unpack_from("<I", self.data, self.at)
        self.at += 4
        return int(value)

    def string(self) -> str:
        length = self.integer()
        if self.at + length > len(self.data):
            raise ValueError("it ends early")
        found = self.data[self.at : self.at + length]
        self.at += length
        return found.decode("utf-8")

    def answers(self) -> tuple[list[str], list[int]]:
        count = self.integer()
        if count > 100:
            raise ValueError(f"a task has {count} answers")
        return [self.string() for _ in range(count)], [self.integer() for _ in range(count)]


def parse_multiple_choice(data: bytes) -> list[Task]:
    """llama.cpp's binary format: number of tasks, their places, then questions with answers and labels.

    Raises:
        ValueError: it is no such file.
    """
    reader = _Reader(data)
    count = reader.integer()
    if count == 0 or 4 * count > len(data):
        raise ValueError(f"it cannot hold {count} tasks")
    for _ in range(count):
        reader.integer()
    tasks = []
    for i in range(count):
        question = reader.string()
        answers, labels = reader.answers()
        reader.answers()  # those with several right answers, which llama-perplexity does not use either
        if sorted(labels) != [0] * (len(labels) - 1) + [1]:
            raise ValueError(f"task {i} has not one right answer")
        tasks.append(Task(tuple(f"{question} {answer}" for answer in answers), labels.index(1)))
    return tasks


def continuations(text: str, count: int, seed: int = SEED) -> list[Task]:
    """Tasks made from any text: which of four sentences follows three others; the wrong ones come from elsewhere in it.

    Raises:
        ValueError: the text has too few sentences.
    """
    sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", text)]
    good = [i for i in range(3, len(sentences)) if all(40 <= len(sentences[j]) <= 240 for j in range(i - 3, i + 1))]
    if len(good) < max(count, 4):
        raise ValueError(f"the text has {len(good)} places with four ordinary sentences, {count} tasks need more")
    drawing = random.Random(seed)
    tasks = []
    for i in sorted(drawing.sample(good, count)):
        endings = [sentences[j] for j in drawing.sample([j for j in good if j != i], 3)]
        answer = drawing.randrange(4)
        endings.insert(answer, sentences[i])
        tasks.append(Task(tuple(f"{' '.join(sentences[i - 3 : i])} {ending}" for ending in endings), answer))
    return tasks


PARSERS: Mapping[str, Callable[[bytes], list[Task]]] = {
    "hellaswag": parse_hellaswag,
    "winogrande": parse_winogrande,
    "multiple-choice": parse_multiple_choice,
}


def read_tasks(kind: str, path: Path, most: int) -> TaskSet:
    """The first tasks of a file.

    Args:
        kind: a key of PARSERS, or "text" for tasks made from a text.
        most: of the tasks, at most; 0: all (of a text, 200).

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        data = path.read_bytes()
        tasks = continuations(data.decode("utf-8"), most or 200) if kind == "text" else PARSERS[kind](data)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} is no {kind} file: {error}") from error
    return TaskSet(f"{kind}@{hashlib.sha256(data).hexdigest()[:8]}", tuple(tasks[: most or None]))


def _score(loaded: Loaded, tokens: list[int], shared: int) -> float:
    """Mean log probability of the tokens behind the first `shared` ones."""
    last = len(tokens) - shared
    logits = torch.log_softmax(logits_of(loaded, torch.tensor(tokens), last + 1)[:-1], dim=1)
    return float(logits.gather(1, torch.tensor(tokens[shared:])[:, None]).mean())


def _tokens(loaded: Loaded, task: Task) -> list[list[int]]:
    return [loaded.tokenizer(choice).input_ids for choice in task.choices]


def _most_probable(loaded: Loaded, rows: list[list[int]]) -> int:
    """The index of the choice, given in tokens, that the model finds most probable."""
    shortest = min(map(len, rows))
    shared = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest - 1)
    shared = max(shared, 1)
    scores = [_score(loaded, row, shared) for row in rows]
    return scores.index(max(scores))


def solves(loaded: Loaded, task: Task) -> bool:
    """Does the model find the right choice most probable?"""
    return _most_probable(loaded, _tokens(loaded, task)) == task.answer


def accuracy(loaded: Loaded, tasks: Sequence[Task], progress: Progress = no_progress) -> float:
    """The share of tasks that the model solves."""
    rows = [_tokens(loaded, task) for task in tasks]
    chosen = in_parallel(
        lambda choices: _most_probable(loaded, choices), rows, lambda n: progress("tasks", n, len(tasks))
    )
    return fmean(choice == task.answer for choice, task in zip(chosen, tasks, strict=True))


def nav_accuracy(rows: Iterable[TaskRow]) -> float:
    """Mean of (accuracy - chance) / (1 - chance) over sets of tasks."""
    return fmean((row.accuracy - row.chance) / (1 - row.chance) for row in rows)
