"""Rows in the hub's columns, from every form of a local copy; labels as ids or names; each fault by its place."""

import csv
import json
import os
import subprocess
import sys

import pytest
from task_rows import CASES, features

from zokern import tasks
from zokern.errors import BadInput
from zokern.tasks import TASKS

datasets = pytest.importorskip("datasets")


def write(path, rows):
    """Rows as a file of the kind that its name says; structures as JSON where the kind has none."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def right(name):
    """(label id, answers) of the case's row."""
    case = CASES[name]
    if name == "squad":
        return None, ("Denver", "the Denver team")
    return (0 if name == "winogrande" else case.row["label"]), ()


def test_every_task_has_a_case():
    assert list(TASKS) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_columns_and_labels_are_the_hubs(name):
    case, task = CASES[name], tasks.get(name)
    assert (task.repository, task.config) == case.hub
    assert set(task.columns) == set(case.features) == set(case.row)
    for column, kind in case.features.items():
        if column == task.label and isinstance(kind, list):
            assert task.columns[column] == "label" and list(task.labels) == kind
        else:
            assert task.columns[column] == ("struct" if isinstance(kind, dict) else kind)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", CASES)
def test_a_file_in_the_hubs_columns(tmp_path, name, suffix):
    row = CASES[name].row
    path = write(tmp_path / f"rows{suffix}", [row, row])
    first, second = tasks.get(name).load(path)
    unread = {"label"}  # a text file holds it as text
    assert {k: v for k, v in first.row.items() if k not in unread} == {k: v for k, v in row.items() if k not in unread}
    assert (first.label, first.answers) == right(name)
    location = dict(zip((".csv", ".tsv", ".jsonl"), ("line 2", "line 2", "line 1"))).get(suffix, "row 1")
    assert first.location == f"{str(path)!r}, {location}" and second.location != first.location


@pytest.mark.parametrize("name", CASES)
def test_saved_to_disk_with_the_hubs_features(tmp_path, name):
    task, case = tasks.get(name), CASES[name]
    data = datasets.Dataset.from_list([case.row] * 3, features=features(datasets, name))
    datasets.DatasetDict({task.splits["validation"]: data}).save_to_disk(tmp_path / "dict")
    data.save_to_disk(tmp_path / "one")
    for folder in ("dict", "one"):
        examples = task.load(tmp_path / folder, "validation")
        assert len(examples) == 3 and examples[2].row == case.row and (examples[2].label, examples[2].answers) == right(name)
    with pytest.raises(BadInput, match=f"has no split train: it has {task.splits['validation']}"):
        task.load(tmp_path / "dict")


@pytest.mark.parametrize(
    "layout", ["{config}/{split}-{i:05}-of-00002.parquet", "{config}/{split}/{i:04}.parquet", "data/{split}-{i}.parquet"]
)
@pytest.mark.parametrize("name", CASES)
def test_a_snapshot_of_the_hubs_repository(tmp_path, name, layout):
    task, case = tasks.get(name), CASES[name]
    data = datasets.Dataset.from_list([case.row] * 3, features=features(datasets, name))
    for i in range(2):
        path = tmp_path / layout.format(config=task.config, split=task.splits["validation"], i=i)
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(path)
    examples = task.load(tmp_path, "validation")
    assert len(examples) == 6 and examples[5].row == case.row and (examples[5].label, examples[5].answers) == right(name)
    assert examples[4].location == f"{str(path.parent)!r}, {path.name}, row 2"


def test_a_folder_with_a_file_a_split(tmp_path):
    row = CASES["mnli"].row
    write(tmp_path / "train.csv", [row])
    write(tmp_path / "validation.jsonl", [row] * 2)
    write(tmp_path / "validation_mismatched.jsonl", [row] * 3)
    mnli = tasks.get("MNLI")
    sizes = [len(mnli.load(tmp_path, split)) for split in ("train", "validation", "validation_mismatched")]
    assert sizes == [1, 2, 3]
    write(tmp_path / "validation_matched.tsv", [row] * 4)
    assert len(mnli.load(tmp_path, "validation")) == 4 == len(mnli.load(tmp_path, "validation_matched"))
    with pytest.raises(BadInput, match=r"holds no split test_matched or test of mnli: it holds train.csv, validation.jsonl"):
        mnli.load(tmp_path, "test")
    write(tmp_path / "train.json", [row])
    with pytest.raises(BadInput, match="has train.csv and train.json: keep one"):
        mnli.load(tmp_path, "train")


@pytest.mark.parametrize(
    "name, values, label",
    [
        ("sst2", (1, "1", "positive", "Positive", 1.0), 1),
        ("sst2", (-1, "-1", "", None), None),
        ("cb", (2, "2", "neutral"), 2),
        ("boolq", (False, "false", "False", 0, "0"), 0),
        ("copa", ("choice2", 1, "1"), 1),
        ("winogrande", ("2", 2), 1),
        ("winogrande", ("", None), None),
    ],
)
def test_labels_as_ids_and_as_names(tmp_path, name, values, label):
    column = tasks.get(name).label
    rows = [{**CASES[name].row, column: value} for value in values]
    assert [example.label for example in tasks.get(name).load(write(tmp_path / "rows.jsonl", rows))] == [label] * len(values)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("sst2", dict(label="good"), "line 2, column 'label': the label is 'good': sst2 has 0 or negative, 1 or positive; -1"),
        ("sst2", dict(label=2), "line 2, column 'label': the label is 2"),
        ("sst2", dict(label=0.5), "the label is 0.5"),
        ("winogrande", dict(answer="0"), "line 2, column 'answer': the label is '0': winogrande has 1, 2;"),
        ("sst2", dict(sentence=7), "line 2, column 'sentence': 7 is no text"),
        ("sst2", dict(sentence=None), "None is no text"),
        ("cb", dict(idx="x"), "line 2, column 'idx': 'x' is no whole number"),
        ("multirc", dict(idx="{x"), "line 2, column 'idx': not JSON"),
        ("squad", dict(answers="Denver"), "line 2, column 'answers': not JSON"),
        ("squad", dict(answers=dict(text="Denver")), "line 2, column 'answers': {'text': 'Denver'} holds no answers: they look like"),
    ],
)
def test_a_row_that_is_wrong(tmp_path, name, change, message):
    path = write(tmp_path / "rows.jsonl", [CASES[name].row, CASES[name].row | change])
    with pytest.raises(BadInput) as error:
        tasks.get(name).load(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_columns_that_lack(tmp_path):
    def without(name, *columns):
        return write(tmp_path / f"{name}.jsonl", [{k: v for k, v in CASES[name].row.items() if k not in columns}])

    with pytest.raises(
        BadInput, match="lacks the column 'hypothesis' of mnli: its columns are premise, label, idx; the hub's are premise, h"
    ):
        tasks.get("mnli").load(without("mnli", "hypothesis"))
    with pytest.raises(BadInput, match="lacks the column 'label' of wic"):
        tasks.get("wic").load(without("wic", "label"))
    with pytest.raises(BadInput, match="lacks the column 'idx' of multirc"):
        tasks.get("multirc").load(without("multirc", "idx"))
    assert tasks.get("wic").load(without("wic", "idx", "start1"))[0].label == 0  # nothing reads them


def test_answers_that_are_not_known(tmp_path):
    rows = [CASES["squad"].row | dict(answers=answers) for answers in (None, "", dict(text=[], answer_start=[]))]
    assert [example.answers for example in tasks.get("squad").load(write(tmp_path / "rows.jsonl", rows))] == [(), (), ()]


def test_names_and_sources_that_are_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"task 'winogrnde' is not known: pass one of sst2, mnli.*squad \(did you mean 'winogrande'\?\)$"):
        tasks.get("winogrnde")
    with pytest.raises(BadInput, match="pass one of sst2.*squad$"):
        tasks.get("zzz")
    with pytest.raises(BadInput, match="split 'dev' is none of squad: pass one of train, validation$"):
        tasks.get("squad").load(tmp_path, "dev")
    with pytest.raises(BadInput, match="data .*nowhere' of sst2 does not exist"):
        tasks.get("sst2").load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="holds no split train of sst2: it holds nothing; put train.csv"):
        tasks.get("sst2").load(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        tasks.get("sst2").load(tmp_path)
    data = datasets.Dataset.from_list([CASES["sst2"].row], split="test")
    data.save_to_disk(tmp_path / "test")
    with pytest.raises(BadInput, match="is the split 'test' alone, not 'train'"):
        tasks.get("sst2").load(tmp_path / "test")


def test_without_the_hub_the_cure_is_a_local_copy(tmp_path):
    code = """
from zokern import tasks
try:
    tasks.get("cb").load()
except tasks.BadInput as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert found.startswith("cb could not be had from the hub as aps/super_glue cb (") and found.count("\n") == 1
    assert "pass a local copy (--data, in Python source=) in the columns idx, premise, hypothesis, label: a file" in found


def test_real_rows(data):
    sst2, rte = tasks.get("sst2"), tasks.get("rte")
    for task in (sst2, rte):
        for split in ("train", "validation", "test"):
            examples = task.load(data / task.name, split)
            lines = (data / task.name / f"{split}.tsv").read_text().splitlines()
            assert len(examples) == len(lines) - 1
            assert [example.label for example in examples] == [int(line.split("\t")[-1]) for line in lines[1:]]
    assert rte.load(data / "rte")[0]["sentence2"] == "Weapons of Mass Destruction Found in Iraq."
