"""A process that drives a study as far as commands go: it claims, answers and ends, and trains nothing.

python driver.py URL STUDY MODE     MODE: answers, deaf (never looks), hangs (ignores SIGTERM too)
"""

from __future__ import annotations

import signal
import sys
import time

from ucd_ray.tune import commands
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import Editor
from ucd_ray.tune.spec import StudySpec


def main(url: str, name: str, mode: str) -> None:
    """Runs until it is told to stop."""
    database = Database(url)
    database.claim(name)
    book = TrialBook(StudySpec.model_validate(database.stored_spec(name)), database)
    commands.settle(database, name)
    book.next_trial()
    if mode == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write("drives\n")
    sys.stdout.flush()
    while mode != "answers":
        time.sleep(1)
    while not answered(database, name, book):
        time.sleep(0.05)
    database.release(name)


def answered(database: Database, name: str, book: TrialBook) -> bool:
    """Carries out what was given, in the words of the dispatcher.  Returns whether the study ends."""
    for command in commands.pending(database, name):
        if command.kind == commands.STOP:
            if command.body["how"] == "kill":
                book.cancel_open("stopped by command")
            commands.finish(database, command.id, "stopping")
            return True
        if command.kind == commands.CANCEL:
            number = command.body["number"]
            told = "stopping" if number in book.open else f"trial {number} is not running"
            if number in book.open:
                book.fail(number, "STOPPED_BY_USER", "stopped by command")
            elif book.cancel_unplaced(number):
                told = "cancelled"
            commands.finish(database, command.id, told)
        if command.kind in (commands.EDIT, commands.ENQUEUE):
            told = Editor(book, lambda text: None).handlers()[command.kind](command)
            commands.finish(database, command.id, told)
        words = {commands.PAUSE: "paused", commands.RESUME: "goes on"}
        if command.kind in words:
            commands.finish(database, command.id, words[command.kind])
    return False


main(*sys.argv[1:])
