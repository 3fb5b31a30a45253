"""A row of every task in exactly the hub's columns and types, and what becomes of it, written by hand."""

from typing import NamedTuple

GLUE, SUPER = "nyu-mll/glue", "aps/super_glue"


class Case(NamedTuple):
    hub: tuple  # repository, config
    features: dict  # column -> "string", "int32", names of a ClassLabel, or a structure of these
    row: dict
    masked: str | None  # [M] for the mask
    words: tuple  # of the masked prompt
    causal: str
    options: tuple  # of the causal prompt
    head: tuple | None


S, N = "string", "int32"
BOOL = ["False", "True"]
PARAGRAPH = "Sam left home. He took a bus."
CASES = {
    "sst2": Case(
        (GLUE, "sst2"),
        dict(sentence=S, label=["negative", "positive"], idx=N),
        dict(sentence="a warm , funny film ", label=1, idx=7),
        "a warm , funny film It was [M].",
        ("terrible", "great"),
        "a warm , funny film It was ",
        ("terrible", "great"),
        ("a warm , funny film",),
    ),
    "mnli": Case(
        (GLUE, "mnli"),
        dict(premise=S, hypothesis=S, label=["entailment", "neutral", "contradiction"], idx=N),
        dict(premise="The cat slept.", hypothesis="An animal rested.", label=0, idx=0),
        "The cat slept? [M], an animal rested.",
        ("Yes", "Maybe", "No"),
        'Suppose The cat slept. Can we infer that "An animal rested."? Yes, No, or Maybe?\n',
        ("Yes", "Maybe", "No"),
        ("The cat slept.", "An animal rested."),
    ),
    "qnli": Case(
        (GLUE, "qnli"),
        dict(question=S, sentence=S, label=["entailment", "not_entailment"], idx=N),
        dict(question="Who slept?", sentence="The cat slept.", label=0, idx=3),
        "Who slept? [M], the cat slept.",
        ("Yes", "No"),
        'The cat slept.\nDoes this answer the question "Who slept?"? Yes or No?\n',
        ("Yes", "No"),
        ("Who slept?", "The cat slept."),
    ),
    "cola": Case(
        (GLUE, "cola"),
        dict(sentence=S, label=["unacceptable", "acceptable"], idx=N),
        dict(sentence="They drank the pub dry.", label=1, idx=1),
        "They drank the pub dry. This is [M].",
        ("incorrect", "correct"),
        "They drank the pub dry. This is ",
        ("incorrect", "correct"),
        ("They drank the pub dry.",),
    ),
    "rte": Case(
        (GLUE, "rte"),
        dict(sentence1=S, sentence2=S, label=["entailment", "not_entailment"], idx=N),
        dict(sentence1="No weapons were found", sentence2="Weapons were found.", label=1, idx=0),
        "No weapons were found? [M], weapons were found.",
        ("Yes", "No"),
        'No weapons were found\nDoes this mean that "Weapons were found." is true? Yes or No?\n',
        ("Yes", "No"),
        ("No weapons were found", "Weapons were found."),
    ),
    "boolq": Case(
        (SUPER, "boolq"),
        dict(question=S, passage=S, idx=N, label=BOOL),
        dict(question="is iron a metal", passage="Iron is a metal.", idx=5, label=1),
        "Iron is a metal. Is iron a metal? [M].",
        ("No", "Yes"),
        "Iron is a metal. Is iron a metal?\n",
        ("No", "Yes"),
        ("is iron a metal", "Iron is a metal."),
    ),
    "cb": Case(
        (SUPER, "cb"),
        dict(premise=S, hypothesis=S, idx=N, label=["entailment", "contradiction", "neutral"]),
        dict(premise="It rained!", hypothesis="It was dry.", idx=2, label=1),
        "It rained? [M], it was dry.",
        ("Yes", "No", "Maybe"),
        'Suppose It rained! Can we infer that "It was dry."? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        ("It rained!", "It was dry."),
    ),
    "wic": Case(
        (SUPER, "wic"),
        dict(word=S, sentence1=S, sentence2=S, start1=N, start2=N, end1=N, end2=N, idx=N, label=BOOL),
        dict(word="bank", sentence1="A bank lends.", sentence2="The bank of a river.", start1=2, start2=4, end1=6, end2=8, idx=9, label=0),
        '"A bank lends." / "The bank of a river." Similar sense of "bank"? [M].',
        ("No", "Yes"),
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA bank lends.\nThe bank of a river.\n',
        ("No", "Yes"),
        ("bank: A bank lends.", "The bank of a river."),
    ),
    "copa": Case(
        (SUPER, "copa"),
        dict(premise=S, choice1=S, choice2=S, question=S, idx=N, label=["choice1", "choice2"]),
        dict(premise="The man fell.", choice1="The ice was thin.", choice2="I sang.", question="cause", idx=0, label=0),
        "The man fell because?\nChoice 1: The ice was thin.\nChoice 2: I sang.\nWhich choice makes more sense? 1 or 2: [M]",
        ("1", "2"),
        "The man fell because ",
        ("the ice was thin.", "I sang."),
        ("The man fell because?", "1: The ice was thin. 2: I sang."),
    ),
    "multirc": Case(
        (SUPER, "multirc"),
        dict(paragraph=S, question=S, answer=S, idx=dict(paragraph=N, question=N, answer=N), label=BOOL),
        dict(paragraph=PARAGRAPH, question="How did he go?", answer="By bus", idx=dict(paragraph=4, question=1, answer=2), label=1),
        'Sam left home. He took a bus. Question: How did he go? Is it "By bus"? [M].',
        ("No", "Yes"),
        'Sam left home. He took a bus.\nQuestion: How did he go?\nI found this answer "By bus". Is that correct? Yes or No?\n',
        ("No", "Yes"),
        (PARAGRAPH, "How did he go? By bus"),
    ),
    "winogrande": Case(
        ("allenai/winogrande", "winogrande_m"),
        dict(sentence=S, option1=S, option2=S, answer=S),
        dict(sentence="Ian ate because _ was hungry.", option1="Ian", option2="Dennis", answer="1"),
        "Ian ate because _ was hungry.\nChoice 1: Ian\nChoice 2: Dennis\nWhich choice makes more sense? 1 or 2: [M]",
        ("1", "2"),
        "Ian ate because ",
        ("Ian was hungry.", "Dennis was hungry."),
        ("Ian ate because _ was hungry.", "1: Ian 2: Dennis"),
    ),
    "squad": Case(
        ("rajpurkar/squad", "plain_text"),
        dict(id=S, title=S, context=S, question=S, answers=dict(text=[S], answer_start=[N])),
        dict(
            id="56be",
            title="Super_Bowl",
            context="Denver won the game.",
            question=" Who won?",
            answers=dict(text=["Denver", "the Denver team"], answer_start=[0, 0]),
        ),
        None,
        (),
        "Title: Super_Bowl\nContext: Denver won the game.\nQuestion: Who won?\nAnswer: ",
        (),
        None,
    ),
}


def features(datasets, name):
    """The hub's features of a task, as ``datasets`` has them."""

    def of(kind):
        if isinstance(kind, dict):
            return {column: of(inner) for column, inner in kind.items()}
        if isinstance(kind, list):
            return datasets.Sequence(of(kind[0])) if kind[0] in (S, N) and len(kind) == 1 else datasets.ClassLabel(names=kind)
        return datasets.Value(kind)

    return datasets.Features(of(CASES[name].features))
