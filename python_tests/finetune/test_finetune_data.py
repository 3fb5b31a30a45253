"""Every file format, which columns are meant, and what is said about data that cannot be used."""

import csv
import json
from pathlib import Path

import pytest

from zokern.finetune import BadInput, Settings
from zokern.finetune.data import Row, columns, hold_out, load
from zokern.finetune.demo_data import docstring_sentences
from zokern.tasks.rows import Table, read

ROWS = [
    {"text": 'He said "no", twice', "label": 1},
    {"text": "null", "label": 0},  # a word, not a missing value
    {"text": "naïve, 1.5", "label": 1},
    {"text": "plain", "label": 0},
]


def write(path, rows=ROWS):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(path)
    return str(path)


def load_file(name, **more):
    return load(Settings(data=str(name), batch_size=1, **more))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_holds_the_same_rows(tmp_path, suffix):
    data = load_file(write(tmp_path / f"data{suffix}"))
    assert data.task.labels == ("0", "1")
    found = sorted((*row.row.values(), data.task.labels[row.label]) for row in data.train + data.held_out)
    assert found == sorted((row["text"], str(row["label"])) for row in ROWS)


def test_a_tsv_without_quoting_keeps_its_quotes(tmp_path):
    """GLUE's way: a quote is a character. Read as quoting, the second one would swallow a line."""
    path = tmp_path / "data.tsv"
    path.write_text('sentence\tlabel\n"great" and good\t1\n"open\t0\nclosed"\t1\n')
    assert [row["sentence"] for row in read(str(path)).rows] == ['"great" and good', '"open', 'closed"']


def test_lines_are_counted_through_quoted_newlines_and_blank_lines(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('text,label\r\n"two\nlines",a\r\n\r\nlast,b\r\n')
    table = read(str(path))
    assert [row["text"] for row in table.rows] == ["two\nlines", "last"] and table.locations == ["line 2", "line 5"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_text_may_be_long(tmp_path, suffix):
    """Python's csv module refuses 131,073 characters of its own accord; another reader's limit stays what it was."""
    before = csv.field_size_limit()
    long = [{"text": f"{word} " * 40_000, "label": word} for word in ("good", "bad") * 2]
    table = read(write(tmp_path / f"data{suffix}", long))
    assert [row["text"] for row in table.rows] == [row["text"] for row in long]
    assert csv.field_size_limit() == before


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\nx,a\n", encoding="utf-8-sig")
    assert read(str(path)).columns == ["text", "label"]


BAD = {
    "empty.csv": ("", "is empty"),
    "header_only.csv": ("text,label\n", "holds no rows"),
    "ragged.csv": ("text,label\na,0\nb,c,1\n", "line 3: 3 fields, not the 2"),
    "short.tsv": ("text\tlabel\na\t0\nb\n", "line 3: 1 fields, not the 2"),
    "open_quote.csv": ('text,label\nx,0\n"b,1\nc,0\n', "line 3: unexpected end of data"),
    "semicolons.csv": (
        "text;label\na;0\nb, or c;1\n",
        "line 1: 'text;label' has semicolons between its columns, and a .csv file has commas",
    ),
    "quoted.csv": ('\n"text";"label"\n"a";"0"\n', 'line 2: \'"text";"label"\' has semicolons'),
    "tabs.csv": (
        "text\tlabel\na\t0\nb\t1\n",
        "has tabs between its columns, and a .csv file has commas: write it with commas, or name it .tsv",
    ),
    "bars.csv": ("text|label\na|0\nb|1\n", "has bars between its columns"),
    "commas.tsv": ("text,label\na,0\nb,1\n", "and a .tsv file has tabs: write it with tabs, or name it .csv"),
    "twice.csv": ("text,text\na,b\n", "a column name occurs twice"),
    "no_label.csv": ("text,mood\na,0\nb,1\n", "no column that is clearly the label: pass --label with one of its columns: text, mood"),
    "two_texts.csv": ("headline,body,label\na,b,0\nc,d,1\n", "several columns that may be the text (headline, body)"),
    "two_labels.csv": ("text,label,class\na,b,0\nc,d,1\n", "several columns that may be the label (label, class)"),
    "empty_text.csv": ("text,label\na,0\nb,1\n  ,1\n", "line 4, column 'text': the text is empty"),
    "empty_label.csv": ("text,label\na,0\nb,\n", "line 3, column 'label': the label is empty"),
    "blank_label.csv": ("text,label\na,0\nb,  \n", "line 3, column 'label': the label is empty"),
    "missing_label.jsonl": ('{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2, column 'label': the label is empty"),
    "float_label.jsonl": ('{"text": "a", "label": 0.5}\n', "line 1, column 'label': the label is 0.5"),
    "real_labels.csv": (
        "text,label\na,0.1\nb,0.30000000000000004\n",
        "line 2, column 'label': the label is 0.1, a real number: classes are",
    ),
    "real_labels.tsv": ("text\tlabel\na\t1\nb\t1e-3\n", "line 3, column 'label': the label is 1e-3, a real number"),
    "number_text.jsonl": ('{"text": 7, "label": 0}\n', "line 1, column 'text': 7 is no text"),
    "one_class.csv": ("text,label\na,yes\nb,yes\n", "holds only the class 'yes'"),
    "misspelt.csv": ("text,label\na,yes\nb,no\nc,yes\nd,no\ne,noo\n", "line 6: the class 'noo' occurs only here"),
    "not_classes.csv": ("text,label\n" + "".join(f"a,{i}\n" for i in range(30)), "30 classes in 30 rows"),
    "broken.json": ('[{"text": "a",\n "label": }]', "line 2: not JSON (Expecting value, character 11)"),
    "broken.jsonl": ('{"text": "a", "label": 0}\n{"text": \n', "line 2"),
    "twice.jsonl": ('{"text": "a", "label": 0}\n{"text": "b", "label": 1, "text": "c"}\n', "line 2: 'text' is there twice"),
    "deep.jsonl": ('{"text": "a", "label": 0}\n' + "[" * 9999 + "\n", "line 2: nested too deeply"),
    "digits.json": ("[" + "9" * 9999 + "]", "line 1: not JSON"),
    "half.jsonl": (
        '{"text": "a", "label": 0}\n{"text": "\\ud800", "label": 1}\n',
        "line 2, column 'text': '\\ud800' holds half a character",
    ),
    "array.jsonl": ("[1]\n", "line 1: a list where an object"),
    "object.json": ('{"text": "a"}', "holds a dict"),
    "not.parquet": ("text", "is not a parquet file"),
    "data.xlsx": ("text", "ends in '.xlsx'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput) as error:
        load_file(tmp_path / name)
    assert message in str(error.value) and str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "latin.csv").write_bytes("text,label\na,0\ncafé,1\n".encode("latin-1"))
    with pytest.raises(BadInput, match="line 3 is not UTF-8"):
        load_file(tmp_path / "latin.csv")


@pytest.mark.parametrize("name", ["nowhere.csv", "./nowhere", ""])
def test_a_path_that_is_not_there(tmp_path, name):
    with pytest.raises(BadInput, match="does not exist|is a folder"):
        load_file(tmp_path / name)


@pytest.mark.parametrize(
    "more, message",
    [
        (dict(text=("words",)), "--text 'words' is no column of .*: its columns are text, label"),
        (dict(label="mood"), "--label 'mood' is no column of .*: its columns are text, label"),
        (dict(text=("label",), label="label"), "both --text and --label"),
        (dict(batch_size=40), "--batch-size 40 is more than the 2 training rows"),
    ],
)
def test_options_that_do_not_fit_the_data(tmp_path, more, message):
    name = write(tmp_path / "data.csv")
    with pytest.raises(BadInput, match=message):
        load(Settings(**{"data": name, "batch_size": 1, **more}))


@pytest.mark.parametrize(
    "names, text, label, found",
    [
        (["sentence", "label"], (), None, (("sentence",), "label")),
        (["idx", "Sentence1", "Sentence2", "Label"], (), None, (("Sentence1", "Sentence2"), "Label")),
        (["question", "sentence", "label"], (), None, (("question", "sentence"), "label")),
        (["id", "review", "date", "stars"], (), "stars", (("review",), "stars")),
        (["words", "mood"], (), "mood", (("words",), "mood")),
        (["label", "class", "text"], ("label",), None, (("label",), "class")),
        (["b", "a", "target"], ("a", "b"), None, (("a", "b"), "target")),
    ],
)
def test_columns_are_found_by_name(names, text, label, found):
    assert columns(Table("x", names, [dict.fromkeys(names, "")], ["row 1"]), text, label) == found


def test_the_columns_taken_are_known(tmp_path):
    data = load_file(write(tmp_path / "data.csv", [{**row, "Label": row["label"], "id": 7} for row in ROWS]), label="Label")
    assert data.columns == {"text": ["text"], "label": "Label"} and data.described() == "text from 'text', label from 'Label'"
    pairs = [dict(premise=row["text"], hypothesis="x", gold_label=row["label"]) for row in ROWS]
    assert load_file(write(tmp_path / "pairs.jsonl", pairs)).described() == "text from 'premise' and 'hypothesis', label from 'gold_label'"


def test_classes_may_be_named_by_numbers_and_words(tmp_path):
    rows = [{"text": f"row {i}", "label": ["1.0", "2.0", "v2.5", "nan"][i % 4]} for i in range(12)]
    assert load_file(write(tmp_path / "data.csv", rows)).task.labels == ("1.0", "2.0", "nan", "v2.5")


def test_held_out_rows_of_their_own(tmp_path):
    train = write(tmp_path / "train.csv")
    data = load_file(train, eval_data=write(tmp_path / "test.jsonl", ROWS[:3]))
    assert len(data.train) == 4 and len(data.held_out) == 3
    other = write(tmp_path / "other.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 7}])
    with pytest.raises(BadInput, match=r"other.csv', line 3, column 'label': '7' is none of the classes in --data \(0, 1\)"):
        load_file(train, eval_data=other)
    bare = write(tmp_path / "bare.csv", [{"text": "a"}])
    with pytest.raises(BadInput, match="lacks the column 'label': its columns are text"):
        load_file(train, eval_data=bare)


def test_whole_numbers_are_ordered_as_numbers(tmp_path):
    rows = [{"text": str(i) + "x", "label": i % 11} for i in range(44)]
    assert load_file(write(tmp_path / "data.csv", rows)).task.labels == tuple(str(i) for i in range(11))


def test_held_out_rows_are_a_share_of_every_class():
    rows = [Row((str(i),), "rare" if i % 10 == 0 else "common", "") for i in range(1000)]
    train, held_out = hold_out("x", rows, seed=3)
    assert (len(train), len(held_out)) == (800, 200) and sum(row.label == "rare" for row in held_out) == 20
    assert sorted(row.texts for row in train + held_out) == sorted(row.texts for row in rows)
    assert hold_out("x", rows, seed=3) == (train, held_out) != hold_out("x", rows, seed=4)


def test_docstrings_are_balanced_distinct_and_do_not_tell_their_label():
    rows = docstring_sentences(each=60)
    texts = [row["text"].lower() for row in rows]
    assert len(set(texts)) == len(rows) == 120 and sum(row["label"] == "sympy" for row in rows) == 60
    assert not any("networkx" in text or "sympy" in text for text in texts)
    assert rows == docstring_sentences(each=60) != docstring_sentences(each=60, seed=1)
    with pytest.raises(BadInput, match="'no_such_package' is not installed"):
        docstring_sentences(("no_such_package",))


def test_sst2_as_glue_has_it():
    path = Path(__file__).parents[2] / "../shared/data/sst2/train.tsv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    data = load(Settings(data=str(path)))
    assert data.task.labels == ("0", "1") and len(data.held_out) == 500
    assert len(data.train) + 500 == len(path.read_text(encoding="utf-8").splitlines()) - 1
