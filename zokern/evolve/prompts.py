"""Rows that are generated for: which column is the prompt, which rows are held out, and the tokens that a model reads."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput, refusing
from ..finetune.data import HELD_OUT, MOST_HELD_OUT
from ..tasks.reader import Tokenizer
from ..tasks.rows import Table, read

PROMPT, ELSE = "prompt", ("messages", "question")  # columns taken where none is asked for


@dataclass(frozen=True)
class Row:
    """A prompt and what it comes with.

    Attributes:
        prompt: text, or chat messages, each a dict with "role" and "content".
        columns: all other columns of the table, for the rewards; None where the row lacks one.
        location: where it comes from, such as "'train.csv', line 7": errors name it.
    """

    prompt: str | list[dict[str, str]]
    columns: dict[str, Any]
    location: str


def load(data: str, prompt: str | None = None, eval_data: str | None = None, seed: int = 0) -> tuple[str, list[Row], list[Row]]:
    """Read the rows of a file or of a hub data set.

    Args:
        data: a csv, tsv, json, jsonl or parquet file, or a hub data set (name or name:config), whose split "train" is taken.
        prompt: the column with the prompts. Default: "prompt"; else "messages" or "question", where one of them is there.
        eval_data: the rows held out, likewise; of a hub data set, the split "validation". Default: a fifth of ``data``, at most 500 rows.
        seed: which rows those are.

    Returns:
        What the data is called, the rows to train on, those held out.
    """
    table = read(data)
    column = prompt_column(table, prompt)
    found = rows(table, column)
    if eval_data is not None:
        held_out = read(eval_data, "validation")
        if column not in held_out.columns:
            raise BadInput(f"--eval-data {held_out.name!r} lacks the column {column!r}: its columns are {', '.join(held_out.columns)}")
        return table.name, found, rows(held_out, column)
    if len(found) == 1:
        raise BadInput(f"data {table.name!r} holds one row, and one is to be held out: add rows, or pass --eval-data")
    random.Random(seed).shuffle(found)
    cut = max(1, min(round(HELD_OUT * len(found)), MOST_HELD_OUT))
    return table.name, found[cut:], found[:cut]


def prompt_column(table: Table, name: str | None = None) -> str:
    """The column asked for, else the one whose name says so."""
    columns = ", ".join(table.columns)
    if name is not None:
        if name not in table.columns:
            raise BadInput(f"--prompt {name!r} is no column of {table.name!r}: its columns are {columns}")
        return name
    found = [column for column in ELSE if column in table.columns]
    if PROMPT in table.columns or len(found) == 1:
        return PROMPT if PROMPT in table.columns else found[0]
    raise BadInput(f"{table.name!r} has no column that is clearly the prompt: pass --prompt with one of its columns: {columns}")


def rows(table: Table, prompt: str) -> list[Row]:
    """Every row, its prompt checked."""
    found = []
    for row, location in zip(table.rows, table.locations, strict=True):
        location = f"{table.name!r}, {location}"
        fault = _fault(row.get(prompt))
        if fault:
            raise BadInput(f"{location}, column {prompt!r}: {fault}")
        found.append(Row(row[prompt], {column: row.get(column) for column in table.columns if column != prompt}, location))
    return found


def _fault(prompt: Any) -> str | None:
    if prompt is None or prompt == [] or (isinstance(prompt, str) and not prompt.strip()):
        return "the prompt is empty: fill it in or remove the row"
    if isinstance(prompt, str):
        return None
    if not isinstance(prompt, list):
        return f"{prompt!r} is neither text nor a list of messages: pass --prompt with another column, or correct the row"
    for message in prompt:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return f'{str(message)[:80]!r} is no message: each is {{"role": "user", "content": "..."}}, both texts'
    if prompt[-1]["role"] == "assistant":
        return "the last message is the assistant's, which the model is to write: remove it"
    return None


def encode(rows: Sequence[Row], tokenizer: Tokenizer, max_new_tokens: int, positions: int | None) -> list[list[int]]:
    """The tokens of each prompt.

    Text is taken as it stands, after the token that the tokenizer begins a text with, unless it begins with that itself, as one that a
    template has made does; messages by the tokenizer's chat template, up to where the assistant begins.

    Args:
        positions: of the model, which has to hold a prompt and ``max_new_tokens``; None: as many as there are.
    """
    return [_encoded(row, tokenizer, max_new_tokens, positions) for row in rows]


def _encoded(row: Row, tokenizer: Tokenizer, max_new_tokens: int, positions: int | None) -> list[int]:
    if isinstance(row.prompt, str):
        tokens = tokenizer(row.prompt, return_special_tokens_mask=True)
        ids, added = tokens["input_ids"], tokens["special_tokens_mask"]
        while ids and added[-1]:  # an end of text, after which nothing is written
            ids, added = ids[:-1], added[:-1]
        if len(ids) > 1 and added[0] and ids[1] == ids[0]:
            ids = ids[1:]
    else:
        if tokenizer.chat_template is None:
            raise BadInput(
                f"{row.location}: these are chat messages, and the tokenizer has no template for them: pass an instruct model, or text"
            )
        with refusing(f"{row.location}: the tokenizer's chat template refuses the messages", "correct the row"):
            text = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput(f"{row.location}: the tokenizer makes no token of the prompt {row.prompt!r}: correct the row")
    if positions is not None and len(ids) + max_new_tokens > positions:
        room = f"{len(ids)} tokens of the prompt and --max-new-tokens {max_new_tokens} are more than the {positions} positions of the model"
        raise BadInput(f"{row.location}: {room}: shorten the prompt, remove the row, or pass less")
    return ids
