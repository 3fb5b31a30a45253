"""Which column is the prompt, which rows are held out, which tokens a model reads, and what is refused."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zokern.evolve import BadInput, Row
from zokern.evolve.prompts import encode, load, prompt_column, rows
from zokern.tasks.rows import Table

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
HUB = """
import json
from dataclasses import astuple
from zokern.evolve.prompts import load
name, *parts = load("team/sums:default", eval_data="team/sums:default")
own = load("team/sums")[2]
try:
    load("team/other")
except ValueError as error:
    print(json.dumps([name, *([astuple(row) for row in rows] for rows in parts), len(own), str(error)]))
"""
DATA = [{"prompt": f"{i} + 1 = ", "answer": i + 1} for i in range(20)]


def write(path, entries):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, entries[0])
            writer.writeheader()
            writer.writerows(entries)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        pytest.importorskip("datasets").Dataset.from_list(entries).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_fifth_of_the_rows_is_held_out_by_the_seed(tmp_path, suffix):
    path = write(tmp_path / f"sums{suffix}", DATA)
    name, train, held_out = load(path)
    assert name == path and len(train) == 16 and len(held_out) == 4
    place = "row" if suffix == ".parquet" else "line"
    for row in train + held_out:
        number = int(row.prompt.split()[0])
        assert row.columns == {"answer": str(number + 1) if suffix == ".csv" else number + 1}
        assert row.location == f"{path!r}, {place} {number + 1 + (suffix == '.csv')}"
    assert len({row.prompt for row in train + held_out}) == 20
    assert load(path) == (name, train, held_out)
    assert load(path, seed=1)[2] != held_out


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_of_a_file(tmp_path, suffix):
    _, *found = load(
        write(tmp_path / f"chats{suffix}", [{"messages": CHAT, "answers": ["4", "four"]}, {"messages": CHAT[1:], "answers": []}])
    )
    (chat,), (question,) = found if len(found[0][0].prompt) == 2 else found[::-1]
    assert (chat.prompt, chat.columns) == (CHAT, {"answers": ["4", "four"]}) and (question.prompt, question.columns) == (
        CHAT[1:],
        {"answers": []},
    )


def test_rows_of_the_hub(tmp_path):
    """From where ``datasets`` keeps what it had of the hub, as it does when offline: real files of its own, under a hub data set's name."""
    datasets = pytest.importorskip("datasets")
    files = {"train": write(tmp_path / "a.jsonl", DATA), "validation": write(tmp_path / "b.jsonl", DATA[:3])}
    builder = datasets.load_dataset_builder("json", data_files=files, cache_dir=str(tmp_path / "made"))
    builder.download_and_prepare()
    for file in list(Path(builder.cache_dir).glob("json-*.arrow")):
        file.rename(file.with_name(file.name.replace("json", "sums")))
    of_config = Path(builder.cache_dir).parents[1]
    of_config.rename(of_config.with_name("default"))
    of_config.parent.rename(tmp_path / "team___sums")

    offline = os.environ | {"HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", HUB], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, train, held_out, own, refused = json.loads(done.stdout)
    assert name == "team/sums:default[train]" and [row[0] for row in train] == [entry["prompt"] for entry in DATA] and own == 4
    assert held_out == [
        [entry["prompt"], {"answer": entry["answer"]}, f"'team/sums:default[validation]', row {i}"] for i, entry in enumerate(DATA[:3], 1)
    ]
    assert refused.startswith("data 'team/other' is no file here and could not be had from the hub (")


def test_rows_of_their_own_are_held_out(tmp_path):
    path, other = write(tmp_path / "a.jsonl", DATA), write(tmp_path / "b.csv", [{"extra": "x", "prompt": "9 + 9 = "}])
    _, train, held_out = load(path, eval_data=other)
    assert [row.prompt for row in train] == [entry["prompt"] for entry in DATA]  # in their order
    assert held_out == [Row("9 + 9 = ", {"extra": "x"}, f"{other!r}, line 2")]
    with pytest.raises(BadInput, match="--eval-data .*c.csv' lacks the column 'prompt': its columns are question"):
        load(path, eval_data=write(tmp_path / "c.csv", [{"question": "?"}]))


def test_at_most_500_rows_are_held_out_and_at_least_one(tmp_path):
    entries = [{"prompt": f"row {i}"} for i in range(3000)]
    assert [*map(len, load(write(tmp_path / "a.csv", entries))[1:])] == [2500, 500]
    assert [*map(len, load(write(tmp_path / "a.csv", entries[:2]))[1:])] == [1, 1]
    with pytest.raises(BadInput, match="holds one row, and one is to be held out: add rows, or pass --eval-data"):
        load(write(tmp_path / "a.csv", entries[:1]))


@pytest.mark.parametrize(
    "columns, asked, taken",
    [
        (["prompt", "question", "messages"], None, "prompt"),
        (["question", "answer"], None, "question"),
        (["answer", "messages"], None, "messages"),
        (["prompt", "answer"], "answer", "answer"),
        (
            ["question", "messages"],
            None,
            "has no column that is clearly the prompt: pass --prompt with one of its columns: question, messages",
        ),
        (["text", "label"], None, "'sums' has no column that is clearly the prompt: pass --prompt with one of its columns: text, label"),
        (["prompt", "label"], "promt", "--prompt 'promt' is no column of 'sums': its columns are prompt, label"),
    ],
)
def test_which_column_is_the_prompt(columns, asked, taken):
    table = Table("sums", columns, [dict.fromkeys(columns, "x")])
    if taken in columns:
        assert prompt_column(table, asked) == taken
    else:
        with pytest.raises(BadInput, match=taken):
            prompt_column(table, asked)


@pytest.mark.parametrize(
    "prompt, said",
    [
        (None, "the prompt is empty"),
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        (" \n", "the prompt is empty"),
        (7, "7 is neither text nor a list of messages"),
        (["hello"], "'hello' is no message"),
        ([{"role": "user"}], "is no message: each is"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "is no message: each is"),
        ([*CHAT, {"role": "assistant", "content": "4"}], "the last message is the assistant's, which the model is to write: remove it"),
    ],
)
def test_prompts_that_are_none(prompt, said):
    with pytest.raises(BadInput, match=f"^'sums', row 2, column 'prompt': .*{said}"):
        rows(Table("sums", ["prompt"], [{"prompt": CHAT}, {"prompt": prompt}]), "prompt")


def test_a_column_that_a_row_lacks_is_none(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "1?", "hint": "h"}, {"prompt": "2?", "answer": "2"}])
    _, found, _ = load(path, eval_data=path)
    assert [row.columns for row in found] == [{"hint": "h", "answer": None}, {"hint": None, "answer": "2"}]


def test_a_text_that_begins_as_the_tokenizer_begins_texts_does_so_once(tokenizer, tokenizer_of):
    bare = tokenizer("hi", add_special_tokens=False)["input_ids"]
    assert encode([Row("<s>hi", {}, "here"), Row("hi", {}, "here")], tokenizer, 1, None) == [[1, *bare]] * 2
    assert encode([Row("<s>hi", {}, "here")], tokenizer_of("$A", bos_token="<s>", eos_token="</s>"), 1, None) == [[1, *bare]]
    [chat] = encode([Row(CHAT, {}, "here")], tokenizer, 1, None)
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert encode([Row(text, {}, "here")], tokenizer, 1, None) == [chat]


def test_the_tokens_of_a_text_are_the_tokenizers_without_an_end(tokenizer, tokenizer_of):
    names = dict(bos_token="<s>", eos_token="</s>")
    forms = {"$A": ([], []), "<s> $A": ([1], []), "<s> $A </s>": ([1], [2])}
    for text in ("You may", " a blank before and after ", "ends with</s>", "</s>"):
        for form, (begin, end) in forms.items():
            made = tokenizer_of(form, **names)
            bare = made(text, add_special_tokens=False)["input_ids"]
            assert made(text)["input_ids"] == begin + bare + end
            assert encode([Row(text, {}, "here")], made, 1, None) == [begin + bare]


def test_messages_are_put_by_the_template(tokenizer, tokenizer_of):
    (ids,) = encode([Row(CHAT, {}, "here")], tokenizer, 1, None)
    assert tokenizer.decode(ids) == "<s>system: Be brief.</s><s>user: 2 + 2?</s><s>assistant: "
    bare = tokenizer_of("<s> $A", bos_token="<s>", eos_token="</s>")
    with pytest.raises(BadInput, match="^'a', line 3: .* no template for them: pass an instruct model, or text"):
        encode([Row(CHAT, {}, "'a', line 3")], bare, 1, None)
    with pytest.raises(
        BadInput, match="^'a', line 3: the tokenizer's chat template refuses the messages .*no such role.*: correct the row"
    ):
        encode([Row([{"role": "judge", "content": "x"}], {}, "'a', line 3")], tokenizer, 1, None)


def test_a_prompt_has_to_fit_with_what_is_written(tokenizer):
    prompts = [Row("x", {}, "'a', line 1"), Row("0" * 19, {}, "'a', line 2")]
    assert len(encode(prompts, tokenizer, 12, 32)[1]) == 20
    said = "^'a', line 2: 20 tokens of the prompt and --max-new-tokens 13 are more than the 32 positions of the model: shorten the prompt"
    with pytest.raises(BadInput, match=said):
        encode(prompts, tokenizer, 13, 32)
