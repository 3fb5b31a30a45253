"""The tasks, as data. Column names, types and ids are the hub's."""

from typing import Any

from ..errors import BadInput, nearest
from .prompts import Prompt
from .task import Task

GLUE, SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"


def glue(name: str, texts: tuple[str, ...], labels: tuple[str, ...], metric: str = "accuracy", **more: Any) -> Task:
    columns = {**strings(*texts), "label": "label", "idx": "int32"}
    return Task(name, GLUE, name, columns, labels, metric, head=tuple(f"{{{text}}}" for text in texts), **more)


def super_glue(name: str, columns: dict[str, str], labels: tuple[str, ...], metric: str = "accuracy", **more: Any) -> Task:
    return Task(name, SUPER_GLUE, name, {"idx": "int32", **columns, "label": "label"}, labels, metric, **more)


def strings(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "string")


def said(words: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Prompts that say one of the options of a sentence."""
    template = f"{{sentence}} {words} {{option}}"
    return {"masked": Prompt(f"{template}.", options), "causal": Prompt(template, options)}


YES_NO, NO_YES, FALSE_TRUE = ("Yes", "No"), ("No", "Yes"), ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
INFER = 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{option}'
CHOOSE = "Choice 1: {%s}\nChoice 2: {%s}\nWhich choice makes more sense? 1 or 2: {option}"

ALL = (
    glue("sst2", ("sentence",), ("negative", "positive"), **said("It was", ("terrible", "great"))),
    glue(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        masked=Prompt("{premise:unended}? {option}, {hypothesis:lowered}", ("Yes", "Maybe", "No")),
        causal=Prompt(INFER, ("Yes", "Maybe", "No")),
        splits={"train": "train", "validation": "validation_matched", "test": "test_matched"}
        | {name: name for name in ("validation_mismatched", "test_mismatched")},
    ),
    glue(
        "qnli",
        ("question", "sentence"),
        ENTAILMENT,
        masked=Prompt("{question:unended}? {option}, {sentence:lowered}", YES_NO),
        causal=Prompt('{sentence}\nDoes this answer the question "{question}"? Yes or No?\n{option}', YES_NO),
    ),
    glue("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews", **said("This is", ("incorrect", "correct"))),
    glue(
        "rte",
        ("sentence1", "sentence2"),
        ENTAILMENT,
        masked=Prompt("{sentence1:unended}? {option}, {sentence2:lowered}", YES_NO),
        causal=Prompt('{sentence1}\nDoes this mean that "{sentence2}" is true? Yes or No?\n{option}', YES_NO),
    ),
    super_glue(
        "boolq",
        strings("question", "passage"),
        FALSE_TRUE,
        masked=Prompt("{passage} {question:asked} {option}.", NO_YES),
        causal=Prompt("{passage} {question:asked}\n{option}", NO_YES),
        head=("{question}", "{passage}"),
    ),
    super_glue(
        "cb",
        strings("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        "f1",
        masked=Prompt("{premise:unended}? {option}, {hypothesis:lowered}", ("Yes", "No", "Maybe")),
        causal=Prompt(INFER, ("Yes", "No", "Maybe")),
        head=("{premise}", "{hypothesis}"),
    ),
    super_glue(
        "wic",
        {**strings("word", "sentence1", "sentence2"), **dict.fromkeys(("start1", "start2", "end1", "end2"), "int32")},
        FALSE_TRUE,
        masked=Prompt('"{sentence1}" / "{sentence2}" Similar sense of "{word}"? {option}.', NO_YES),
        causal=Prompt(
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n{option}', NO_YES
        ),
        head=("{word}: {sentence1}", "{sentence2}"),
    ),
    super_glue(
        "copa",
        strings("premise", "choice1", "choice2", "question"),
        ("choice1", "choice2"),
        masked=Prompt("{premise:unended} {question:conjunction}?\n" + CHOOSE % ("choice1", "choice2"), ("1", "2")),
        causal=Prompt("{premise:unended} {question:conjunction} {option}", ("{choice1:inline}", "{choice2:inline}")),
        head=("{premise:unended} {question:conjunction}?", "1: {choice1} 2: {choice2}"),
    ),
    super_glue(
        "multirc",
        {**strings("paragraph", "question", "answer"), "idx": "struct"},
        FALSE_TRUE,
        "f1",
        masked=Prompt('{paragraph} Question: {question} Is it "{answer}"? {option}.', NO_YES),
        causal=Prompt('{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n{option}', NO_YES),
        head=("{paragraph}", "{question} {answer}"),
        needed=("idx",),
        positive=1,
    ),
    Task(
        "winogrande",
        "allenai/winogrande",
        "winogrande_m",
        strings("sentence", "option1", "option2", "answer"),
        ("1", "2"),
        "accuracy",
        masked=Prompt("{sentence}\n" + CHOOSE % ("option1", "option2"), ("1", "2")),
        causal=Prompt("{sentence:before}{option}", ("{option1}{sentence:after}", "{option2}{sentence:after}")),
        head=("{sentence}", "1: {option1} 2: {option2}"),
        label="answer",
    ),
    Task(
        "squad",
        "rajpurkar/squad",
        "plain_text",
        {**strings("id", "title", "context", "question"), "answers": "struct"},
        (),
        "f1",
        causal=Prompt("Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer: {option}"),
        label="answers",
        splits={"train": "train", "validation": "validation"},
    ),
)
TASKS = {task.name: task for task in ALL}
"""name -> Task, of all that zokern knows."""


def get(name: str) -> Task:
    """A task by its name: "sst2", "mnli", "qnli", "cola", "rte", "boolq", "cb", "wic", "copa", "multirc", "winogrande" or "squad".

    Args:
        name: case, "-" and "_" do not matter.

    Raises:
        BadInput: there is none of this name.
    """
    plain = str(name).casefold().replace("-", "").replace("_", "")
    if plain not in TASKS:
        raise BadInput(f"task {name!r} is not known: pass one of {', '.join(TASKS)}{nearest(plain, TASKS)}")
    return TASKS[plain]
